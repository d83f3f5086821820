"""Probes, and arms that share their first phases."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

import moc.study
from moc.config.schema import ProbeConfig, StudyConfig
from moc.store.files import read_json
from moc.store.journal import read
from moc.study import run_study
from tests.support.child_tasks import NoTracker
from tests.support.helpers_training import tiny_study


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moc.study, "Tracker", NoTracker)
    monkeypatch.setattr(moc.study, "build_report", lambda folder: folder)


def probed(folder: Path) -> StudyConfig:
    """Relearning the first phase, from both boundaries."""
    study = tiny_study(folder, "evals.num_items=8")
    phase = deepcopy(study.phases["facts"])
    phase.tokens = 1536  # 6 steps
    study.probes = {
        "relearn": ProbeConfig(
            phase=phase, after=["facts", "skills"], num_items=4, every_tokens=512
        )
    }
    return study


def with_frozen_bank(study: StudyConfig) -> StudyConfig:
    """An arm beside moc that differs from the second phase on."""
    frozen = deepcopy(study.arms["moc"])
    frozen.phases["skills"].optimizer.bank.freeze = True
    study.arms = {"moc": study.arms["moc"], "frozen": frozen}
    return study


def run_dir(study: StudyConfig, arm: str = "moc") -> Path:
    return study.dir / f"arms/{arm}/seed-0"


def load(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_probe_scores_as_it_goes_and_leaves_the_run_alone(tmp_path: Path) -> None:
    study = probed(tmp_path)
    plain = tiny_study(tmp_path / "plain") if (tmp_path / "plain").mkdir() is None else study
    plain.evals = study.evals
    for each in (study, plain):
        run_study(each, arms=["moc"])
    for boundary in ("0-start", "1-facts", "2-skills"):
        one, other = (
            (run_dir(each) / f"boundaries/{boundary}/model.safetensors").read_bytes()
            for each in (study, plain)
        )
        assert one == other
    for boundary in ("1-facts", "2-skills"):
        folder = run_dir(study) / "probes/relearn" / boundary
        record = load(folder / "probe.json")
        assert [point["tokens"] for point in record["points"]] == [0, 512, 1024, 1536]
        # before its first step, the copy is the boundary's model
        lines = (run_dir(study) / f"boundaries/{boundary}/samples/facts_choice.jsonl").read_text()
        expected = [json.loads(line) for line in lines.splitlines()][:4]
        found = (folder / "samples-0/facts_choice.jsonl").read_text().splitlines()
        assert [json.loads(line) for line in found] == expected
        losses = [
            record["metrics"]["relearn/train/loss"] for record in read(folder / "metrics.jsonl")
        ]
        assert len(losses) == 6 and losses[-1] < losses[0]
        assert (folder / "samples-1536/facts_choice.jsonl").is_file()


def test_a_probe_is_done_once_and_again_when_it_changes(tmp_path: Path) -> None:
    study = probed(tmp_path)
    study.probes["relearn"].after = []  # the last boundary
    run_study(study, arms=["moc"])
    folder = run_dir(study) / "probes/relearn"
    assert [path.name for path in folder.iterdir()] == ["2-skills"]
    before = (folder / "2-skills/probe.json").stat().st_mtime_ns
    run_study(study, arms=["moc"])
    assert (folder / "2-skills/probe.json").stat().st_mtime_ns == before
    study.probes["relearn"].phase.optimizer.bank.freeze = True
    run_study(study, arms=["moc"])
    assert (folder / "2-skills/probe.json").stat().st_mtime_ns > before


def test_what_two_arms_share_is_trained_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = with_frozen_bank(tiny_study(tmp_path))
    run_study(study)
    assert "frozen seed 0 | facts: as moc, not trained again" in capsys.readouterr().out
    for name in ("0-start", "1-facts"):
        moc_s, frozens = (files(run_dir(study, arm) / "boundaries" / name) for arm in study.arms)
        assert list(moc_s.values()) == list(frozens.values())
    shared = read_json(run_dir(study, "frozen") / "shared.json")
    assert shared == {"arm": "moc", "phases": ["facts"]}
    steps = [
        [
            (record["phase"], record["step"])
            for record in read(run_dir(study, arm) / "metrics.jsonl", committed=True)
        ]
        for arm in study.arms
    ]
    assert steps[0] == steps[1]


def test_an_arm_that_shares_ends_where_it_ends_alone(tmp_path: Path) -> None:
    (tmp_path / "alone").mkdir()
    alone = with_frozen_bank(tiny_study(tmp_path / "alone"))
    run_study(alone, arms=["frozen"])
    assert not (run_dir(alone, "frozen") / "shared.json").exists()
    study = with_frozen_bank(tiny_study(tmp_path))
    run_study(study)
    ends = [
        (run_dir(each, "frozen") / "boundaries/2-skills/model.safetensors").read_bytes()
        for each in (alone, study)
    ]
    assert ends[0] == ends[1]
    moc_s = (run_dir(study) / "boundaries/2-skills/model.safetensors").read_bytes()
    assert moc_s != ends[0]


def test_moments_that_were_not_kept_are_not_shared(tmp_path: Path) -> None:
    """The sibling goes on with Adam's moments, which the first arm had no reason to save."""
    study = with_frozen_bank(tiny_study(tmp_path))
    study.arms["frozen"].phases["skills"].carry.optimizer = True
    run_study(study)
    assert not (run_dir(study, "frozen") / "shared.json").exists()
    one, other = (
        (run_dir(study, arm) / "boundaries/1-facts/model.safetensors").read_bytes()
        for arm in study.arms
    )
    assert one == other  # trained twice, to the same weights
