"""``moc tune``, then the comparison with what it chose, on a study that trains in a second."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

import moc.study
from moc.cli import main
from moc.config.load import load_study
from moc.store.files import read_json
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
