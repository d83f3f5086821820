"""Arms with a bank of one row, or a random address, in training.

What would break for a user: a control arm that trains otherwise than the arm it is compared with.
"""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from moc.callbacks.memory_use import MemoryUse
from moc.callbacks.metrics import TrainingMetrics
from moc.store.journal import Journal, read
from moc.train.lazy_adamw import LazyAdamW
from moc.train.step import optimizer_step
from tests.numerics.model.test_controls_of_memory import one_and_full
from tests.support.helpers_training import tiny_study, train_phase
from tests.support.small_models import ROUTERS, tokens_of

SETTINGS = {"lr": 1e-2, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
CLIP_NORM = 1.0


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("scope", ["segment", "token"])
def test_five_steps_of_one_row_are_adamw_on_the_sum_of_a_full_banks_rows(scope, lazy):
    """Two micro-batches a step. A single row is read in every step: lazy is dense."""
    router = replace(ROUTERS[scope], balance_coefficient=0.0, z_loss_coefficient=0.0)
    one, full = one_and_full(scope)
    for model in (one, full):
        model.kind.router = router
    banks = [bank.rows for bank in one.banks]
    rest = [p for name, p in one.named_parameters() if not name.startswith("banks.")]
    groups = [{"params": rest}, {"params": banks, "lazy": lazy}]
    optimizer = LazyAdamW(groups, **SETTINGS)

    row = torch.nn.Parameter(one.banks[0].rows.detach().clone())
    others = [p for name, p in full.named_parameters() if not name.startswith("banks.")]
    reference = torch.optim.AdamW([*others, row], **SETTINGS)
    for step in range(5):
        tokens_ABL = tokens_of(4, 15, seed=step).unflatten(0, (2, 2))
        counted_ABL = torch.ones_like(tokens_ABL[..., 1:], dtype=torch.bool)
        result = optimizer_step(one, optimizer, tokens_ABL, counted_ABL, clip_norm=CLIP_NORM)

        full.zero_grad()
        logits_BLV = full(tokens_ABL.flatten(0, 1)[:, :-1]).logits_BLV
        loss = F.cross_entropy(logits_BLV.flatten(0, 1), tokens_ABL.flatten(0, 1)[:, 1:].flatten())
        loss.backward()
        row.grad = full.banks[0].rows.grad.sum(0, keepdim=True)
        norm = torch.nn.utils.clip_grad_norm_([*others, row], CLIP_NORM)
        reference.step()
        full.banks[0].rows.data.copy_(row.data.expand_as(full.banks[0].rows))
        assert result.loss.item() == pytest.approx(loss.item(), rel=1e-9)
        assert result.grad_norm.item() == pytest.approx(norm.item(), rel=1e-6) and norm > CLIP_NORM
    torch.testing.assert_close(banks[0].detach(), row.detach(), rtol=1e-6, atol=1e-8)
    for found, expected in zip(rest, others, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("lazy", ["false", "true"])
@pytest.mark.parametrize(
    "control", [("rows=one",), ("address=random",), ("rows=one", "address=random")]
)
def test_a_control_arm_trains_and_its_use_is_recorded(
    control: tuple[str, ...], lazy: str, tmp_path: Path
) -> None:
    settings = [f"model.memory.{setting}" for setting in control]
    study = tiny_study(tmp_path, *settings, f"phases.facts.optimizer.lazy_bank={lazy}")
    callbacks = (TrainingMetrics(), MemoryUse(Journal(tmp_path / "memory_use.jsonl")))
    module, recorder = train_phase(study, tmp_path, callbacks=callbacks)
    losses = recorder.losses()
    assert len(losses) == 8 and losses[-1] < losses[0] - 0.02
    assert module.model.bank_rows()[0].shape[0] == (1 if "rows=one" in control else 9)
    random = "address=random" in control
    lines = read(tmp_path / "memory_use.jsonl")
    assert len(lines) == 8 * 2
    for line in lines:
        assert len(line["load"]) == 9 and sum(line["load"]) == line["step"] * (256 // 16) * 2
        assert ("balance_loss" in line) == ("z_loss" in line) == (not random)
    for result in recorder.results:
        assert (result["balance_loss"] is None) == random and result["use"] is not None
