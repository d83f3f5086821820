"""A run that stops where it is told goes on to the same weights as one that never stopped."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import moc.study
from moc.config.schema import StudyConfig
from moc.errors import CheckpointError
from moc.plan.pause import Pause, find_pause
from moc.store.files import read_json
from moc.store.journal import read
from moc.store.rundir import RunDir, StudyDir
from moc.study import run_study
from moc.verbs.status import study_status
from tests.support.child_tasks import NoTracker
from tests.support.helpers_training import tiny_study

# 8 and 6 steps of 256 tokens
SHARES = {
    0.1: Pause(0, 1, False, 256),
    0.4: Pause(0, 6, False, 1536),
    0.57: Pause(0, 8, True, 2048),
    0.8: Pause(1, 3, False, 2816),
}
OPTIONS = ("evals.tasks=[]", "evals.leakage_windows=0", "phases.skills.carry.optimizer=true")
OPTIONS += ("evals.controls={knockouts: [], bank_swap: []}", "evals.validation_tokens=256")
OPTIONS += ("model.memory.chapters.router.bias_rate=0.01", "phases.facts.revive_every_steps=2")


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moc.study, "Tracker", NoTracker)
    monkeypatch.setattr(moc.study, "build_report", lambda folder: folder)


def run_until(study: StudyConfig, share: float | None) -> None:
    run_study(replace(study, trainer=replace(study.trainer, pause_at=share)))


def run_of(study: StudyConfig) -> RunDir:
    return StudyDir(study.dir).run("moc", 0, list(study.phases))


def test_where_a_share_of_the_tokens_falls(tmp_path: Path) -> None:
    phases = list(tiny_study(tmp_path).phases.values())
    assert {share: find_pause(phases, share) for share in SHARES} == SHARES
    assert find_pause(phases, 1e-9) == SHARES[0.1]  # a step at least
    assert [find_pause(phases, share) for share in (None, 0.99, 1.0)] == [None] * 3


def test_it_goes_on_to_the_same_weights_and_journal(tmp_path: Path) -> None:
    whole, parts = (tiny_study(tmp_path / name, *OPTIONS) for name in made(tmp_path, 2))
    run_until(whole, None)
    at = run_of(parts)
    for share, pause in SHARES.items():
        for _ in range(2):  # the second time there is nothing to do
            run_until(parts, share)
            assert read_json(at.info)["status"] == "paused"
            assert max(record["tokens"] for record in read(at.journal().path)) == pause.tokens
            assert at.boundary(1).is_dir() == (pause.tokens >= 2048)
        state = {run.arm: run.state for run in study_status(parts.dir)}
        assert state == {"moc": "paused", "backbone": "paused"}
        if not pause.at_end:
            record = read_json(at.pause(pause.phase, pause.step))
            assert record["tokens"] == pause.tokens and set(record["bits_per_byte"]) == {
                "people",
                "skills",
            }
    run_until(parts, None)
    for arm in parts.arms:
        one, other = (StudyDir(study.dir).run(arm, 0) for study in (whole, parts))
        for boundary in one.boundaries():
            twin = other.path / "boundaries" / boundary.path.name
            assert boundary.weights.read_bytes() == (twin / "model.safetensors").read_bytes()
            assert _bits(boundary.path) == _bits(twin)
        assert _losses(one) == _losses(other)


def test_a_run_is_scored_where_it_pauses_as_where_a_phase_ends(tmp_path: Path) -> None:
    """A phase of 6 steps at a constant rate is the first 6 of 8."""
    folders = made(tmp_path, 2)
    constant = (*OPTIONS, "phases.facts.schedule.kind=constant")
    short = tiny_study(tmp_path / folders[0], *constant, "phases.facts.tokens=1536")
    long = tiny_study(tmp_path / folders[1], *constant)
    run_until(short, 0.5)
    run_until(long, 0.4)
    there = read_json(run_of(long).pause(0, 6))
    assert there["bits_per_byte"] == _bits(run_of(short).boundary(1))


def test_what_it_shares_with_a_sibling_is_scored_there_too(tmp_path: Path) -> None:
    (folder,) = made(tmp_path, 1)
    study = tiny_study(tmp_path / folder, *OPTIONS)
    twin = replace(study.arms["moc"], phases=dict(study.arms["moc"].phases))
    twin.phases["skills"] = replace(twin.phases["skills"], replay=0.0, loss_on="all")
    study.arms = {"moc": study.arms["moc"], "twin": twin}
    for share in (0.4, None):
        for arm in study.arms:  # moc is at its end before the other begins
            trainer = replace(study.trainer, pause_at=share if arm == "moc" else None)
            run_study(replace(study, trainer=trainer), arms=["moc"])
    run_study(replace(study, trainer=replace(study.trainer, pause_at=0.4)), arms=["twin"])
    of_twin = StudyDir(study.dir).run("twin", 0, list(study.phases))
    assert read_json(of_twin.shared)["arm"] == "moc"
    assert read_json(of_twin.pause(0, 6)) == read_json(run_of(study).pause(0, 6))


def test_a_run_that_went_on_cannot_be_scored_where_it_was_not(tmp_path: Path) -> None:
    (folder,) = made(tmp_path, 1)
    study = tiny_study(tmp_path / folder, *OPTIONS)
    run_until(study, 0.4)
    run_until(study, 0.1 + 0.3)
    with pytest.raises(CheckpointError, match=r"has gone on past step 1 of phase facts.*remove it"):
        run_until(study, 0.1)


def made(folder: Path, count: int) -> list[str]:
    names = [f"study-{number}" for number in range(count)]
    for name in names:
        (folder / name).mkdir()
    return names


def _bits(boundary: Path) -> dict[str, float]:
    return read_json(boundary / "evals.json")["bits_per_byte"]


def _losses(run: RunDir) -> list[tuple[str, int, float]]:
    key = "train/loss"
    return [
        (record["phase"], record["tokens"], record["metrics"][f"{record['phase']}/{key}"])
        for record in read(run.journal().path)
        if f"{record['phase']}/{key}" in record["metrics"]
    ]
