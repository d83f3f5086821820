"""Five optimizer steps of a model with product keys against loops in float64.

What would break for a user: values that decay or move while nobody reads them, or that are trained
at another rate than they were given.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from moc.config.schema import GroupConfig, OptimizerConfig
from moc.model import Transformer, build_model
from moc.train.optim import build_optimizer
from moc.train.step import optimizer_step
from tests.support.oracle import Weights, unfused
from tests.support.product_keys_model import (
    NaiveAdamW,
    leaves,
    naive_logits,
    randomise,
    small_config,
)

STEPS, CLIP, DECAY, BETA1, BETA2, EPS = 5, 0.8, 0.1, 0.9, 0.95, 1e-8
RATES = {"backbone": 1e-2, "memory_layers": 2e-2, "bank": 1e-1}
NUM_KEYS = 12  # 144 values, of which some are never read
NORMS = ["none", "layer", "batch"]


def batches() -> Iterator[tuple[Tensor, Tensor]]:
    """Tokens (A 2, B 1, L + 1 4) of every step, and which of the targets count."""
    generator = torch.Generator().manual_seed(3)
    for _ in range(STEPS):
        counted_ABL = torch.rand(2, 1, 3, generator=generator) < 0.7
        counted_ABL[0, 0, 0] = True
        yield torch.randint(11, (2, 1, 4), generator=generator), counted_ABL


def settings(lazy: bool) -> OptimizerConfig:
    groups = {name: GroupConfig(lr=lr, weight_decay=DECAY) for name, lr in RATES.items()}
    return OptimizerConfig(beta1=BETA1, beta2=BETA2, clip_norm=CLIP, lazy_bank=lazy, **groups)


def of_a_step(model: Transformer, weights: Weights, tokens_ABL: Tensor, counted_ABL: Tensor):
    """Loss, gradients by name and their norm: sums over the counted targets, divided once."""
    loss = 0.0
    for tokens_BL, counted_BL in zip(tokens_ABL, counted_ABL, strict=True):
        logits_BLV = naive_logits(model.config, weights, tokens_BL[:, :-1])
        for b, t in counted_BL.nonzero().tolist():
            logits_V = logits_BLV[b, t]
            loss = loss + (logits_V - logits_V[tokens_BL[b, t + 1]]).exp().sum().log()
    loss = loss / counted_ABL.sum()
    names = [name for name, weight in weights.items() if weight.requires_grad]
    gradients = torch.autograd.grad(loss, [weights[name] for name in names])
    norm = sum(gradient.square().sum() for gradient in gradients).sqrt()
    return loss.detach(), dict(zip(names, gradients, strict=True)), norm


def update(weights: Weights, gradients: Weights, moments: dict, read_R: Tensor, lazy: bool) -> None:
    for name, gradient in gradients.items():
        group = "memory_layers" if ".memory" in name else "backbone"
        group = "bank" if name.startswith("banks.") else group
        decays = group != "bank" and not name.endswith(("norm.weight", ".bias"))
        adam = RATES[group], DECAY if decays else 0.0, BETA1, BETA2, EPS
        if not (group == "bank" and lazy):
            moments.setdefault(name, NaiveAdamW(*adam)).update(weights[name], gradient)
            continue
        for row in read_R.nonzero()[:, 0].tolist():
            own = moments.setdefault((name, row), NaiveAdamW(*adam))
            own.update(weights[name][row], gradient[row])


@pytest.mark.parametrize("lazy", [False, True], ids=["dense", "lazy"])
@pytest.mark.parametrize("norm", NORMS)
def test_five_steps_are_those_of_the_loop(norm: str, lazy: bool) -> None:
    model = randomise(build_model(small_config(query_norm=norm, num_keys=NUM_KEYS)))
    weights = leaves(model)
    at_first = weights["banks.0.rows"].detach().clone()
    optimizer = build_optimizer(model, settings(lazy), fused=False)
    moments: dict = {}
    ever_R = torch.zeros(NUM_KEYS**2, dtype=torch.bool)
    for tokens_ABL, counted_ABL in batches():
        result = optimizer_step(model, optimizer, tokens_ABL, counted_ABL, clip_norm=CLIP)
        loss, gradients, grad_norm = of_a_step(model, weights, tokens_ABL, counted_ABL)
        assert result.loss.item() == pytest.approx(loss.item(), rel=1e-8)
        assert result.grad_norm.item() == pytest.approx(grad_norm.item(), rel=1e-6)
        assert grad_norm > CLIP
        assert result.use is not None and not result.skipped
        # positions x heads x k, in both micro-batches; every layer
        assert result.use.sum(1).tolist() == [2 * 3 * 2 * 4] * 2
        read_R = result.use.sum(0) > 0
        ever_R |= read_R
        with torch.no_grad():
            clipped = {n: g * (CLIP / (grad_norm + 1e-6)) for n, g in gradients.items()}
            update(weights, clipped, moments, read_R, lazy)
        found = unfused(model.config, dict(model.named_parameters()))
        expected = {name: weights[name] for name in gradients}
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)
    moved_R = (model.bank_rows()[0] != at_first).any(1)
    # no weight decay of values: those never read are, to the bit, what they were
    assert not moved_R[~ever_R].any() and (~ever_R).any()


@pytest.mark.parametrize("lazy", [False, True], ids=["dense", "lazy"])
def test_a_value_that_is_no_longer_read(lazy: bool) -> None:
    """Lazily it stands still; under dense AdamW it goes on by its momentum, and does not decay."""
    model = randomise(build_model(small_config(num_keys=NUM_KEYS)))
    optimizer = build_optimizer(model, settings(lazy), fused=False)
    counted_ABL = torch.ones(1, 1, 3, dtype=torch.bool)
    used, rows = [], []
    for token in (1, 7):
        tokens_ABL = torch.full((1, 1, 4), token)
        result = optimizer_step(model, optimizer, tokens_ABL, counted_ABL, clip_norm=0.0)
        assert result.use is not None
        used.append(result.use.sum(0) > 0)
        rows.append(model.bank_rows()[0].detach().clone())
    idle_R = used[0] & ~used[1]
    assert idle_R.any()
    moved_R = (rows[1] != rows[0]).any(1)
    assert moved_R[idle_R].all() == (not lazy) and moved_R[idle_R].any() == (not lazy)
