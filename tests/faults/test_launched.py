"""Runs that a launcher has started end where undisturbed ones do, whoever is killed."""

from __future__ import annotations

import os
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

import moc.run.execute
import moc.study
from moc.errors import TrainingDiverged
from moc.store.files import read_json
from moc.store.journal import read_end
from moc.store.lock import Holder, holder_of
from moc.store.rundir import StudyDir
from moc.study import run_study
from moc.verbs.status import study_status
from tests.conftest import ROOT, Run
from tests.support.child_tasks import NoTracker, command, tracked_command
from tests.support.forked import Forked
from tests.support.helpers_runs import complaint
from tests.support.helpers_training import tiny_study, write_tiny_study

LONGER = "phases.facts.tokens=32768"  # 128 steps: time to be killed in
WITHIN_SEC = 240


@pytest.fixture(scope="module")
def serial(tmp_path_factory: pytest.TempPathFactory, in_child: Run) -> Path:
    """The study's folder, all runs of it done by one process."""
    folder = tmp_path_factory.mktemp("serial")
    argv = ["run", str(write_tiny_study(folder)), LONGER, "launch.cpus=1"]
    assert in_child("command", log=folder / "log", argv=argv) == [0], (folder / "log").read_text()
    return folder / "runs/tiny"


@contextmanager
def launched(folder: Path, log: str, run: Callable[[list[str]], int] = command) -> Iterator[Forked]:
    """``moc run --launch processes:2`` of the tiny study, which is ended in the end. The runs that
    it starts are processes as ever, and import what they need."""
    argv = ["run", str(write_tiny_study(folder)), LONGER, "--launch", "processes:2"]

    def task() -> int:
        os.environ["PYTHONPATH"] = str(ROOT)  # of the runs
        return run([*argv, "launch.cpus=1"])

    process = Forked(task, folder / log)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for run in _runs(folder):
            if (holder := holder_of(run)) is not None:
                psutil.Process(holder.pid).kill()


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
        with launched(tmp_path, "second", tracked_command) as second:
            assert second.wait(WITHIN_SEC) == 0, (tmp_path / "second").read_text()
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
        assert not any(map(holder_of, _runs(tmp_path)))
    line = complaint((tmp_path / "first").read_text())
    assert re.search(r"stopped; [12] runs? saved and ended; the same command goes on from", line)
    state, *_ = (run.state for run in study_status(tmp_path / "runs/tiny"))
    assert state == "stopped"
    moc_run, _ = _runs(tmp_path)
    assert list(moc_run.glob("checkpoints/*")) or list(moc_run.glob("boundaries/1-*"))
    with launched(tmp_path, "second") as second:
        assert second.wait(WITHIN_SEC) == 0, (tmp_path / "second").read_text()
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


def trains(folder: Path, arm: str, but: Holder | None = None) -> Holder:
    """Who trains the arm's run, once it has recorded a step."""
    run = StudyDir(folder / "runs/tiny").run(arm, 0)
    deadline = time.monotonic() + WITHIN_SEC
    while time.monotonic() < deadline:
        holder = holder_of(run.path)
        if holder is not None and holder != but:
            begun = [r for r in read_end(run.journal().path) if r["time"] > holder.since]
            if any(record["step"] > 0 for record in begun):
                return holder
        time.sleep(0.01)
    raise AssertionError(f"{run.path} does not train")


def check_same(folder: Path, serial: Path) -> None:
    files = sorted(serial.rglob("model.safetensors"))
    assert len(files) == 6
    for file in files:
        name = file.relative_to(serial)
        assert (folder / "runs/tiny" / name).read_bytes() == file.read_bytes(), name
    for run in _runs(folder):
        assert read_json(run / "run.json")["status"] == "finished"


def _runs(folder: Path) -> Sequence[Path]:
    return [StudyDir(folder / "runs/tiny").run(arm, 0).path for arm in ("moc", "backbone")]
