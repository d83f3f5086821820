"""A loss that jumps is seen, marked, and met as the study asks."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch

import moc.train.step
from moc.callbacks.spikes import Spikes
from moc.errors import TrainingDiverged
from moc.store.journal import read
from moc.train.spikes import LIMIT, MIN_STEPS, WINDOW, Band
from tests.conftest import Run
from tests.faults.conftest import run_in
from tests.support.helpers_runs import complaint, run_dir
from tests.support.helpers_training import Recorder, tiny_study, train_phase
from tests.support.spoiling import spoiled

STEPS, AT = 44, 40  # of the first phase, and the one that is spoiled
LONG = f"phases.facts.tokens={STEPS * 256}"
SPIKE: dict[str, Any] = {
    "at": "before step",
    "do": "spoil the loss",
    "phase": "facts",
    "step": AT,
    "factor": 30.0,
}


def trained(folder: Path, on_spike: Any, patch: pytest.MonkeyPatch) -> tuple[Recorder, list]:
    """Every step of the long phase, whose gradient is 30-fold at ``AT``, and its journal."""

    def change(index: int, loss: torch.Tensor) -> torch.Tensor:
        return loss * 30 if index // 2 + 1 == AT else loss

    patch.setattr(moc.train.step, "predict", spoiled(change))
    recorder = Recorder(weights=True)
    study = tiny_study(folder, LONG)
    train_phase(study, folder, recorder=recorder, callbacks=(Spikes(on_spike),))
    return recorder, read(folder / "metrics.jsonl")


@pytest.mark.parametrize("on_spike", ["warn", "skip"])
def test_a_spike_is_marked_and_its_update_made_or_skipped(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    on_spike: str,
) -> None:
    """a loss spike. Kept: a line, a mark in journal, MLflow and report; with on_spike: skip the
    weights before it."""
    recorder, records = trained(tmp_path, on_spike, monkeypatch)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("spike")]
    assert f"phase facts, step {AT}: loss" in line and "gradient norm" in line
    assert line.endswith("update skipped") == (on_spike == "skip")
    (marked,) = [r for r in records if "facts/train/spike_loss_sigmas" in r["metrics"]]
    assert marked["step"] == AT and marked["metrics"]["facts/train/spike_loss_sigmas"] > LIMIT
    before, after = recorder.weights[AT - 2], recorder.weights[AT - 1]
    same = all(torch.equal(before[name], after[name]) for name in before)
    assert same == (on_spike == "skip")
    assert ("facts/train/skipped_for_spike" in marked["metrics"]) == (on_spike == "skip")


def test_a_run_that_must_stop_keeps_the_weights_before_the_spike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = rf"step {AT}: loss .* sigma .*on_spike=skip"
    with pytest.raises(TrainingDiverged, match=message):
        trained(tmp_path, "stop", monkeypatch)


def test_a_killed_run_sees_the_same_spike_again(
    tmp_path_factory: pytest.TempPathFactory, cache: Path, in_child: Run
) -> None:
    """The bands are saved: after a resume the step is judged by the 128 steps before it."""
    found = []
    for kills in ([], [{"at": "after step", "phase": "facts", "step": AT - 2}]):
        folder = tmp_path_factory.mktemp("spike")
        for stop in [*kills, None]:
            code, log = run_in(folder, cache, in_child, (LONG,), stop, fault=SPIKE)
        assert code == 0, log
        marks = [
            (record["step"], record["metrics"]["facts/train/spike_grad_norm_sigmas"])
            for record in read(run_dir(folder) / "metrics.jsonl")
            if "facts/train/spike_grad_norm_sigmas" in record["metrics"]
        ]
        weights = (run_dir(folder) / "boundaries/2-skills/model.safetensors").read_bytes()
        found.append((marks, weights))
    assert found[0] == found[1]
    assert [step for step, _ in found[0][0]] == [AT]


def test_a_stopped_run_goes_on_when_told_how(tmp_path: Path, cache: Path, in_child: Run) -> None:
    """Changing trainer.on_spike is no other run."""
    stop = "trainer.on_spike=stop"
    code, log = run_in(tmp_path, cache, in_child, (LONG, stop), None, fault=SPIKE)
    assert code == 1 and f"step {AT}: loss" in complaint(log)
    skip = "trainer.on_spike=skip"
    code, log = run_in(tmp_path, cache, in_child, (LONG, skip), None, fault=SPIKE)
    assert code == 0 and "update skipped" in log
    assert json.loads((run_dir(tmp_path) / "run.json").read_text())["status"] == "finished"


def test_the_band_against_its_definition() -> None:
    draw = random.Random(0)
    values = [math.exp(draw.gauss(0, 0.1)) for _ in range(400)]
    values[300] = values[330] = 10.0
    band, logs = Band(), []
    for index, value in enumerate(values):
        last = logs[-WINDOW:]
        expected = 0.0
        level = math.log(value)
        if len(last) >= MIN_STEPS:
            mean = sum(last) / len(last)
            spread = math.sqrt(sum((x - mean) ** 2 for x in last) / (len(last) - 1))
            expected = (level - mean) / spread
            level = min(level, mean + 6 * spread)
        logs.append(level)
        found = band.leave(value)
        assert found == pytest.approx(expected if expected > 6 else 0.0)
        assert (found > 0) == (index in (300, 330))


def test_a_band_gets_used_to_a_new_level_and_ignores_what_is_no_number() -> None:
    band = Band()
    draw = random.Random(1)
    for _ in range(WINDOW):
        assert band.leave(math.exp(draw.gauss(0, 0.05))) == 0
    assert band.leave(math.nan) == 0 and band.leave(0.0) == 0
    flagged = [band.leave(5 * math.exp(draw.gauss(0, 0.05))) > 0 for _ in range(WINDOW)]
    assert flagged[0] and sum(flagged) < 30 and not any(flagged[30:])
