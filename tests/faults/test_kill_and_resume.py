"""A run that is killed or stopped ends where an undisturbed one does, to the bit.

Runs are child processes that end at a chosen moment (``tests.support.child_tasks``); one test
uses the command as a user does and kills it from outside.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from moc.store.journal import read
from tests.conftest import ROOT, Run
from tests.faults.conftest import run_in
from tests.support.helpers_runs import BOUNDARIES, Moc, check_same, outcome, run_dir
from tests.support.helpers_training import write_tiny_study
from tests.support.ranks import left_alone
from tests.support.real_command import trains

KILLS: list[dict[str, Any]] = [
    {"at": "while evaluating", "boundary": 0},
    {"at": "before scores", "folder": "0-start"},
    {"at": "after step", "phase": "facts", "step": 2},  # before the first checkpoint
    {"at": "while writing", "folder": "facts-00000003"},
    {"at": "before commit", "phase": "facts", "step": 3},
    {"at": "after step", "phase": "facts", "step": 5},
    {"at": "while writing", "folder": "1-facts"},
    {"at": "before commit", "phase": "facts", "step": 8},
    {"at": "while evaluating", "boundary": 0},  # of the weights on disk
    {"at": "before scores", "folder": "1-facts"},
    {"at": "after step", "phase": "skills", "step": 1},
    {"at": "before commit", "phase": "skills", "step": 3},
    {"at": "after step", "phase": "skills", "step": 6},
    {"at": "before scores", "folder": "2-skills"},
]


def test_an_undisturbed_run_records_each_step_once(undisturbed: dict[str, Any]) -> None:
    """What the other tests compare with is itself complete."""
    steps = [("facts", s) for s in range(1, 9)] + [("skills", s) for s in range(1, 7)]
    assert list(undisturbed["losses"]) == steps
    evals = [("start", 0, True), ("facts", 8, True), ("skills", 6, True)]
    assert undisturbed["records"] == Counter([*((p, s, False) for p, s in steps), *evals])
    assert undisturbed["chapters"] == Counter((p, s, layer) for p, s in steps for layer in (0, 1))
    assert undisturbed["checkpoints"] == []  # those of finished phases are removed
    assert len(set(undisturbed["weights"])) == 3


def test_a_run_killed_at_every_awkward_moment(
    moc: Moc, tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    """kill -9 in the middle of a step; kill -9 in every stage of saving; kill -9 between phases.
    Kept: everything up to the last checkpoint; the same command ends in the same weights, to the
    bit, and every point is in the journal once.
    """
    for kill in KILLS:
        code, log = moc(stop=kill)
        assert code == -signal.SIGKILL, f"{kill} was never reached:\n{log}"
    code, log = moc()
    assert code == 0, log
    check_same(tmp_path, undisturbed)
    assert not list(run_dir(tmp_path).rglob("*.partial"))


def test_balancing_and_revival_go_on_where_they_were(
    tmp_path: Path, cache: Path, in_child: Run
) -> None:
    """Killed between two revivals, with picks counted since the last one."""
    options = ("phases.facts.revive_every_steps=2", "phases.skills.revive_every_steps=4")
    options += (
        "model.memory.chapters.num_chapters=129",
        "model.memory.chapters.router.bias_rate=0.01",
    )
    for name in ("undisturbed", "killed"):
        (tmp_path / name).mkdir()
    code, log = run_in(tmp_path / "undisturbed", cache, in_child, options, None)
    assert code == 0, log
    expected = outcome(tmp_path / "undisturbed")
    steps = {(record["phase"], record["step"]) for record in expected["revivals"]}
    assert steps == {("facts", 2), ("facts", 4), ("facts", 6), ("skills", 4)}
    for phase in ("facts", "skills"):
        kill = {"at": "after step", "phase": phase, "step": 5}  # after the checkpoint of step 3
        code, log = run_in(tmp_path / "killed", cache, in_child, options, kill)
        assert code == -signal.SIGKILL, log
    code, log = run_in(tmp_path / "killed", cache, in_child, options, None)
    assert code == 0, log
    check_same(tmp_path / "killed", expected)


def test_the_command_killed_from_outside(tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    """TMPDIR elsewhere or missing. Kept: everything, wherever it is: the real command, MLflow and
    report included, killed and run again; its loaders end with it.
    """
    command = ["-m", "moc", "run", str(write_tiny_study(tmp_path)), "--arms", "moc"]
    command += ["trainer.num_workers=2"]
    process = trains(tmp_path, command, TMPDIR="/does/not/exist")
    process.kill()
    process.wait()
    assert left_alone(process.pid)
    records = read(run_dir(tmp_path) / "metrics.jsonl")
    assert 5 <= len(records) < 14, (tmp_path / "log").read_text()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": "/dev/shm"}
    again = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert again.returncode == 0, again.stdout + again.stderr
    check_same(tmp_path, undisturbed)
    assert (tmp_path / "runs/tiny/report/report.html").is_file()


@pytest.mark.usefixtures("finished")
def test_what_is_complete_is_skipped(moc: Moc, tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    files = sorted(run_dir(tmp_path).rglob("*.safetensors"))
    stamps = [file.stat().st_mtime_ns for file in files]
    code, log = moc(stop={"at": "after step"})  # any training step would kill it
    assert code == 0, log
    code, log = moc(stop={"at": "while evaluating", "boundary": 0})  # and so would a score
    assert code == 0, log
    assert [file.stat().st_mtime_ns for file in files] == stamps
    check_same(tmp_path, undisturbed)


@pytest.mark.usefixtures("finished")
def test_other_evaluations_score_the_old_weights_again(moc: Moc, tmp_path: Path) -> None:
    code, log = moc("evals.num_items=3", stop={"at": "after step"})
    assert code == 0, log
    for name in BOUNDARIES:
        record = json.loads((run_dir(tmp_path) / f"boundaries/{name}/evals.json").read_text())
        assert record["tasks"]["facts_choice"]["num_items"] == 3
