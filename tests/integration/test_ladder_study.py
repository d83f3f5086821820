"""A ladder of two sizes trains as any study does, and is too short for a curve."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

import moc.study
from moc.cli import main
from moc.config.load import load_study
from moc.run.resolve import resolve_study
from moc.study import run_study
from tests.support.child_tasks import NoTracker
from tests.support.helpers_training import TINY_STUDY

LADDER = """
ladder:
  s: {phases: {facts: {tokens: 1024}}}
  m: {model: {num_layers: 3}}
"""


def test_two_sizes_train_and_are_refused_a_curve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(moc.study, "Tracker", NoTracker)
    (tmp_path / "tiny.yaml").write_text(TINY_STUDY.format(folder=tmp_path) + LADDER)
    study = load_study(tmp_path / "tiny.yaml", ["trainer.accelerator=cpu", "evals.tasks=[]"])
    assert list(study.arms) == ["moc-s", "backbone-s", "moc-m", "backbone-m"]
    page = run_study(study).read_text()
    assert "Loss over training compute" in page and "a curve of three parameters needs 4" in page
    saved = load_study(study.dir / "study.yaml", stored=True)
    assert saved.arms == resolve_study(study).arms

    capsys.readouterr()
    assert main(["fit", str(tmp_path / "tiny.yaml")]) == 0
    assert "2 sizes; a curve of three parameters needs 4" in capsys.readouterr().out
    rows = list(csv.DictReader((study.dir / "report/tables/scaling_points.csv").open()))
    assert [row["arm"] for row in rows] == ["moc-s", "moc-m", "backbone-s", "backbone-m"]
    assert float(rows[1]["flops"]) > float(rows[0]["flops"]) > 0
    assert all(float(row["seconds"]) > 0 and float(row["bits_per_byte"]) > 0 for row in rows)
