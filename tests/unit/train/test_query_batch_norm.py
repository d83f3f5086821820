"""Running statistics of batch norm: once an optimizer step, whatever else happens in it.

What would break for a user: an evaluated model that is not the trained one.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from moc.config.schema import OptimizerConfig
from moc.model import Transformer, build_model
from moc.train.optim import build_optimizer
from moc.train.step import StepResult, optimizer_step
from tests.support.product_keys_model import randomise, small_config

CONFIG = small_config(query_norm="batch")
TOKENS_ABL = torch.randint(11, (3, 2, 5), generator=torch.Generator().manual_seed(4))


def statistics(model: Transformer) -> dict[str, Tensor]:
    return {name: b.clone() for name, b in model.named_buffers() if "running" in name}


def step(model: Transformer, **settings: object) -> StepResult:
    optimizer = build_optimizer(model, OptimizerConfig(), fused=False)
    counted_ABL = torch.ones_like(TOKENS_ABL[..., 1:]).bool()
    return optimizer_step(model, optimizer, TOKENS_ABL, counted_ABL, clip_norm=1.0, **settings)  # type: ignore[arg-type]


def queries_of(model: Transformer) -> list[list[Tensor]]:
    """Of every layer, what its query map gave in each call to come, (B, L, H * Q)."""
    found: list[list[Tensor]] = []
    for block in model.blocks:
        calls: list[Tensor] = []
        found.append(calls)
        block.memory.address.query.register_forward_hook(  # type: ignore[union-attr]
            lambda _, __, out, calls=calls: calls.append(out.detach().clone())
        )
    return found


@pytest.mark.parametrize("checkpointing", [False, True])
def test_they_move_once_toward_the_last_micro_batch(checkpointing: bool) -> None:
    model = randomise(build_model(replace(CONFIG, activation_checkpointing=checkpointing)))
    before, queries = statistics(model), queries_of(model)
    assert not step(model).skipped
    for layer, calls in enumerate(queries):
        assert len(calls) == 3 * (1 + checkpointing)  # recomputed in the backward pass
        rows = calls[-1].reshape(-1, 4)  # (B * L * H, Q): one set of features for all heads
        mean = sum(rows) / len(rows)
        var = sum((row - mean) ** 2 for row in rows) / len(rows)
        for name, seen in (("mean", mean), ("var", var)):
            key = f"blocks.{layer}.memory.address.query_norm.running_{name}_Q"
            expected = 0.9 * before[key] + 0.1 * seen
            torch.testing.assert_close(statistics(model)[key], expected, rtol=1e-9, atol=1e-12)


def test_recomputed_blocks_train_the_same_model() -> None:
    plain, again = (
        randomise(build_model(replace(CONFIG, activation_checkpointing=checkpointing)))
        for checkpointing in (False, True)
    )
    for _ in range(3):
        step(plain), step(again)
    expected = plain.state_dict()
    torch.testing.assert_close(again.state_dict(), expected, rtol=1e-12, atol=1e-14)


def test_a_step_without_an_update_leaves_them() -> None:
    model = randomise(build_model(CONFIG))
    before = statistics(model)
    step(model, update=False)
    torch.testing.assert_close(statistics(model), before, rtol=0, atol=0)


def test_a_skipped_step_leaves_them() -> None:
    model = randomise(build_model(CONFIG))
    before = statistics(model)
    with torch.no_grad():
        model.norm.weight[0] = float("nan")
    assert step(model).skipped
    torch.testing.assert_close(statistics(model), before, rtol=0, atol=0)


def test_evaluating_leaves_them_and_goes_by_them() -> None:
    """A position's query then hangs on no other position."""
    model = randomise(build_model(CONFIG)).eval()
    before = statistics(model)
    with torch.no_grad():
        together = model(TOKENS_ABL[0]).logits_BLV
        alone = model(TOKENS_ABL[0, :1]).logits_BLV
    torch.testing.assert_close(together[:1], alone, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(statistics(model), before, rtol=0, atol=0)
    with torch.no_grad():
        for buffer in model.buffers():
            buffer += 0.5
        assert not torch.equal(model(TOKENS_ABL[0]).logits_BLV, together)
