"""A NaN never reaches the weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import moc.train.step
from moc.errors import TrainingDiverged
from moc.model.transformer import build_model
from moc.store.journal import read
from tests.support.helpers_training import Recorder, tiny_study, train_phase
from tests.support.spoiling import spoiled

Spoil = Callable[[Tensor], Tensor]


@pytest.fixture
def spoil(monkeypatch: pytest.MonkeyPatch) -> Callable[[set[int], Spoil], None]:
    """``spoil(steps, how)``: change the loss of these steps (from 1), in the second of their two
    micro-batches."""

    def install(steps: set[int], how: Spoil) -> None:
        def change(index: int, loss: Tensor) -> Tensor:
            step, micro_batch = divmod(index, 2)
            return how(loss) if step + 1 in steps and micro_batch == 1 else loss

        monkeypatch.setattr(moc.train.step, "predict", spoiled(change))

    return install


def bad_gradient(loss: Tensor) -> Tensor:
    """The loss as it is, its gradient infinite."""
    loss = loss.clone()
    loss.register_hook(lambda gradient: gradient * float("inf"))
    return loss


HOWS: dict[str, Spoil] = {
    "nan loss": lambda loss: loss * float("nan"),
    "infinite loss": lambda loss: loss * float("inf"),
    "infinite gradient": bad_gradient,
}


@pytest.mark.parametrize("how", HOWS)
def test_one_bad_step_is_skipped_and_training_goes_on(
    tmp_path: Path, spoil: Callable, how: str
) -> None:
    spoil({3}, HOWS[how])
    recorder = Recorder(weights=True)
    train_phase(tiny_study(tmp_path), tmp_path, recorder=recorder)
    assert [result["skipped"] for result in recorder.results] == [i == 2 for i in range(8)]
    after = recorder.weights
    for name in after[0]:
        assert torch.equal(after[1][name], after[2][name]), f"{name} moved in the bad step"
        assert torch.isfinite(after[-1][name]).all()
    assert not torch.equal(after[2]["embedding.weight"], after[3]["embedding.weight"])
    records = {record["step"]: record["metrics"] for record in read(tmp_path / "metrics.jsonl")}
    assert records[3]["facts/train/skipped_in_a_row"] == 1


def test_a_skipped_step_leaves_no_trace_in_the_moments(tmp_path: Path, spoil: Callable) -> None:
    """The bad gradient must not linger and join the next step's."""
    clean = Recorder(weights=True)
    study = tiny_study(tmp_path, "phases.facts.schedule.kind=constant")
    study.arms["moc"].phases["facts"].schedule.warmup_steps = 0
    train_phase(study, tmp_path, recorder=clean)
    spoil({1}, HOWS["nan loss"])
    spoiled = Recorder(weights=True)
    train_phase(study, tmp_path, recorder=spoiled)
    start = build_model(study.arms["moc"].model, seed=0).state_dict()
    # Adam's first step is the sign of the gradient, whichever step comes first
    moved = (spoiled.weights[1]["norm.weight"] - start["norm.weight"]).abs()
    assert moved.max() == pytest.approx(1e-3, rel=1e-2)
    assert torch.equal(spoiled.weights[0]["norm.weight"], start["norm.weight"])


def test_two_bad_steps_then_a_good_one_start_the_count_again(
    tmp_path: Path, spoil: Callable
) -> None:
    spoil({2, 3, 5, 6}, HOWS["nan loss"])
    _, recorder = train_phase(tiny_study(tmp_path), tmp_path)
    assert len(recorder.results) == 8


def test_three_in_a_row_stop_the_run_with_an_explanation(tmp_path: Path, spoil: Callable) -> None:
    spoil({3, 4, 5, 6}, HOWS["nan loss"])
    model = build_model(tiny_study(tmp_path).arms["moc"].model, seed=0)
    recorder = Recorder(weights=True)
    with pytest.raises(TrainingDiverged, match="phase facts, step 5: loss nan") as caught:
        train_phase(tiny_study(tmp_path), tmp_path, model=model, recorder=recorder)
    assert "\n" not in str(caught.value) and "Lower the learning rate" in str(caught.value)
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, recorder.weights[1][name]), f"{name} is not that of step 2"
