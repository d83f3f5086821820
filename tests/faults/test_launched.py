"""Runs that a launcher has started end where undisturbed ones do, whoever is killed."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
from contextlib import AbstractContextManager
from pathlib import Path

import psutil
import pytest

import moc.run.execute
import moc.study
from moc.errors import TrainingDiverged
from moc.store.lock import holder_of
from moc.store.rundir import StudyDir
from moc.study import run_study
from moc.verbs.status import study_status
from tests.support.child_tasks import NoTracker
from tests.support.helpers_runs import complaint
from tests.support.helpers_training import tiny_study
from tests.support.launched import (
    WITHIN_SEC,
    check_same,
    ends_well,
    launching,
    runs_of,
    trains,
)


def launched(folder: Path, log: str) -> AbstractContextManager[subprocess.Popen[bytes]]:
    return launching(folder, log, "processes:2")


@pytest.fixture(autouse=True)
def room_for_two(monkeypatch: pytest.MonkeyPatch) -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("two runs at once need two cores")


def test_a_worker_and_the_launcher_are_killed(tmp_path: Path, serial: Path) -> None:
    """a launched run killed; its launcher killed. Kept: the run is started again and goes on from
    its checkpoint; without the launcher runs go on, and the same command waits for them; the
    weights are those of one process, to the bit."""
    with launched(tmp_path, "first") as launcher:
        killed = trains(tmp_path, "moc")
        os.kill(killed.pid, signal.SIGKILL)
        again = trains(tmp_path, "moc", but=killed)
        launcher.kill()
        launcher.wait()
        said = (tmp_path / "first").read_text()
        assert "moc seed 0 | again, 1 of 3: signal SIGKILL ended it" in said, said
        assert psutil.pid_exists(again.pid)  # it goes on
        with launched(tmp_path, "second") as second:
            ends_well(second, tmp_path / "second")
    check_same(tmp_path, serial)
    assert (tmp_path / "runs/tiny/report/report.html").is_file()
    assert {run.state for run in study_status(tmp_path / "runs/tiny")} == {"done"}
    log = StudyDir(tmp_path / "runs/tiny").run("moc", 0).log.read_text()
    assert "moc seed 0 | skills | step 6/6" in log


def test_the_launcher_is_asked_to_stop(tmp_path: Path, serial: Path) -> None:
    """Ctrl-C at a launcher without a terminal. Kept: every run saves its step and ends, and the
    same command goes on."""
    with launched(tmp_path, "first") as launcher:
        trains(tmp_path, "moc")  # the other one may be faster, or about to begin
        launcher.send_signal(signal.SIGINT)
        assert launcher.wait(WITHIN_SEC) == 128 + signal.SIGINT
        assert not any(holder_of(run.path) for run in runs_of(tmp_path))
    line = complaint((tmp_path / "first").read_text())
    assert re.search(r"stopped; [12] runs? saved and ended; the same command goes on from", line)
    state, *_ = (run.state for run in study_status(tmp_path / "runs/tiny"))
    assert state == "stopped"
    moc_run, _ = runs_of(tmp_path)
    assert list(moc_run.checkpoints.glob("*")) or list(moc_run.path.glob("boundaries/1-*"))
    with launched(tmp_path, "second") as second:
        ends_well(second, tmp_path / "second")
    check_same(tmp_path, serial)


def test_why_a_run_failed_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise TrainingDiverged("not finite\nfor 3 steps")

    monkeypatch.setattr(moc.study, "Tracker", NoTracker)
    monkeypatch.setattr(moc.run.execute, "train_phase", fail)
    with pytest.raises(TrainingDiverged):
        run_study(tiny_study(tmp_path), arms=["moc"])
    found = {run.arm: run for run in study_status(tmp_path / "runs/tiny")}
    assert (found["moc"].state, found["moc"].why) == ("failed", "not finite")
    assert found["moc"].host == socket.gethostname() and found["backbone"].state == "waiting"
