"""``moc tune``, then the comparison with what it chose, on a study that trains in a second; and a
search that is killed on the way."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

import moc.run.execute
import moc.study
from moc.cli import main
from moc.config.load import load_study
from moc.store.files import read_json
from moc.store.rundir import StudyDir
from moc.study import run_study
from tests.support.child_tasks import NoTracker
from tests.support.helpers_training import write_tiny_study

SHORT = ("phases.facts.tokens=1024", "phases.skills.tokens=512", "evals.tasks=[]")


@pytest.fixture(autouse=True)
def no_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moc.study, "Tracker", NoTracker)


def test_every_arm_is_tuned_and_compared_at_its_best(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A thousandth of the learning rate teaches nothing; a million times as much diverges."""
    file, path = write_tiny_study(tmp_path), tmp_path / "runs/tiny-tuning/tuned.yaml"
    axes = "tuning={axes: {lr_scale: [1e-3, 3.0, 1e6]}, budget: 1.0, hold_out: 0.1}"
    assert main(["tune", str(file), *SHORT, axes]) == 0
    said = capsys.readouterr().out
    assert said.startswith("tiny-tuning: 6 arms x 1 seed") and f"written: {path}" in said
    tuned = yaml.safe_load(path.read_text())
    for arm in tuned["arms"].values():
        assert arm["chosen"] == {"lr_scale": 3.0} and not arm["at_edge"]
        worst, best, beyond = (trial["metric"][0] for trial in arm["trials"])
        assert best < worst < 10 and best < beyond
    ends = sorted((tmp_path / "runs/tiny-tuning").glob("arms/*/*/boundaries/2-*/model.safetensors"))
    stamps = [end.stat().st_mtime_ns for end in ends]
    assert main(["tune", str(file), *SHORT, axes]) == 0
    assert (
        yaml.safe_load(path.read_text()) == tuned
        and [end.stat().st_mtime_ns for end in ends] == stamps
    )

    compared = load_study(file, [*SHORT, f"tuned={path}"])
    page = run_study(compared).read_text()
    assert "How the arms were tuned" in page and "lr_scale 3.0" in page
    assert (compared.dir / "report/figures/sensitivity.png").is_file()
    path.write_text("another")  # what was trained does not depend on it any more
    again = load_study(compared.dir / "study.yaml")
    assert again.arms["moc"].phases == compared.arms["moc"].phases and again.tuned is None
    assert "lr_scale 3.0" in run_study(again).read_text()
    run = read_json(compared.dir / "arms/moc/seed-0/run.json")
    assert run["status"] == "finished"


def test_a_search_killed_in_a_paused_trial_chooses_as_one_that_was_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what went on from a pause is what trains in one go, to the bit."""
    axes = "tuning.axes={lr_scale: {low: 0.01, high: 10, log: true}}"
    options = ["tuning.sampler=tpe", "tuning.pruner=asha", "tuning.rungs=1", "tuning.budget=1.0"]
    options += ["tuning.trials=5", "tuning.batch=3", "tuning.hold_out=0.1"]
    options += [axes, "evals.validation_tokens=256"]
    found = {}
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
        words = ["tune", str(write_tiny_study(tmp_path / name)), *SHORT, *options]
        if name == "killed":
            for calls in (2, 9, 3):
                with monkeypatch.context() as patch:
                    patch.setattr(moc.run.execute, "train_phase", _dies_after(calls))
                    assert main(words) == 130
        assert main(words) == 0
        folder = StudyDir(tmp_path / name / "runs/tiny-tuning")
        found[name] = yaml.safe_load((folder.path / "tuned.yaml").read_text())
    assert found["whole"] == found["killed"]
    states = {trial["state"] for arm in found["whole"]["arms"].values() for trial in arm["trials"]}
    assert states == {"finished", "pruned"}
    assert {len(arm["trials"]) for arm in found["whole"]["arms"].values()} == {5}

    trials = load_study(folder.config)
    shutil.rmtree(folder.path / "arms" / next(iter(trials.arms)))  # of the first batch
    assert main(words) == 0
    assert yaml.safe_load((folder.path / "tuned.yaml").read_text()) == found["whole"]
    infos = {run.arm: read_json(run.info) for run in folder.runs()}
    paused = next(arm for arm, info in infos.items() if info["status"] == "finished")
    assert list((folder.run(paused, 1000).path / "pauses").glob("*.json"))
    trials.name, trials.arms = "in-one-go", {paused: trials.arms[paused]}
    run_study(trials, report=False)
    for boundary in folder.run(paused, 1000).boundaries():
        twin = trials.dir / boundary.path.relative_to(folder.path) / "model.safetensors"
        assert boundary.weights.read_bytes() == twin.read_bytes()


def _dies_after(calls: int) -> Any:
    """Of ``train_phase``: in the middle of so many."""
    train_phase, count = moc.run.execute.train_phase, [0]

    def train(*args: Any, **options: Any) -> None:
        count[0] += 1
        train_phase(*args, **options)
        if count[0] == calls:
            raise KeyboardInterrupt  # trained, and not scored

    return train
