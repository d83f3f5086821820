"""``moc tune``, then the comparison with what it chose, on a study that trains in a second."""

from __future__ import annotations

from pathlib import Path

import pytest

import moc.study
from moc.config.load import load_study
from moc.config.tuning import TuningConfig
from moc.store.files import read_json
from moc.study import run_study, tune_study
from tests.support.child_tasks import NoTracker
from tests.support.helpers_training import tiny_study, write_tiny_study

SHORT = ("phases.facts.tokens=1024", "phases.skills.tokens=512", "evals.tasks=[]")


@pytest.fixture(autouse=True)
def no_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moc.study, "Tracker", NoTracker)


def test_every_arm_is_tuned_and_compared_at_its_best(tmp_path: Path) -> None:
    """A thousandth of the learning rate teaches nothing; a million times as much diverges."""
    study = tiny_study(tmp_path, *SHORT)
    study.tuning = TuningConfig(axes={"lr_scale": [1e-3, 3.0, 1e6]}, budget=1.0, hold_out=0.1)
    tuned, path = tune_study(study)
    for arm in tuned["arms"].values():
        assert arm["chosen"] == {"lr_scale": 3.0} and not arm["at_edge"]
        worst, best, beyond = (trial["metric"][0] for trial in arm["trials"])
        assert best < worst < 10 and best < beyond
    ends = sorted((tmp_path / "runs/tiny-tuning").glob("arms/*/*/boundaries/2-*/model.safetensors"))
    stamps = [end.stat().st_mtime_ns for end in ends]
    again, _ = tune_study(study)
    assert again == tuned and [end.stat().st_mtime_ns for end in ends] == stamps

    compared = load_study(write_tiny_study(tmp_path), [*SHORT, f"tuned={path}"])
    page = run_study(compared).read_text()
    assert "How the arms were tuned" in page and "lr_scale 3.0" in page
    assert (compared.dir / "report/figures/sensitivity.png").is_file()
    assert (
        load_study(compared.dir / "study.yaml", stored=True).arms
        == load_study(compared.dir / "study.yaml").arms
    )
    run = read_json(compared.dir / "arms/moc/seed-0/run.json")
    assert run["status"] == "finished"
