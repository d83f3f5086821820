"""Runs as SLURM jobs: preempted, killed, cancelled."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

import moc.study
from moc.errors import ConfigError
from moc.launch.build import build_launcher
from moc.run.resolve import resolve_study
from moc.store.rundir import StudyDir
from moc.study import run_study
from tests.support.child_tasks import NoTracker
from tests.support.helpers_training import tiny_study
from tests.support.launched import (
    LONGER,
    check_same,
    ends_well,
    launching,
    trains,
    wait_for,
)
from tests.support.slurm_node import one_node, why_not

submitit = pytest.importorskip("submitit", reason="pip install submitit")


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    if reason := why_not():
        pytest.skip(reason)
    with ExitStack() as stack:
        try:
            environment = stack.enter_context(one_node(tmp_path_factory.mktemp("slurm")))
        except (OSError, RuntimeError, subprocess.SubprocessError) as error:
            pytest.skip(f"SLURM cannot be started here: {error}")
        yield environment


def test_a_job_is_preempted(tmp_path: Path, slurm: dict[str, str], serial: Path) -> None:
    """a SLURM job preempted by one of a higher partition. Kept: the step under way, which is saved;
    SLURM queues the job again, and the study ends in the weights of one process, to the bit."""

    def ask(*command: str) -> str:
        environment = {**os.environ, **slurm}
        return subprocess.run(command, env=environment, stdout=-1, text=True, check=True).stdout

    def restarts() -> int | None:
        found = re.search(r"JobState=PENDING .*Restarts=(\d)", ask(*show).replace("\n", " "))
        return int(found[1]) if found else None

    log = tmp_path / "first"
    with launching(tmp_path, "first", "slurm", "launch.partition=low", **slurm) as launcher:
        preempted = trains(tmp_path, "moc")
        job = wait_for(lambda: re.search(r"moc seed 0 \| job (\S+)", log.read_text()), "no job")[1]
        assert re.fullmatch(r"\d+_0", job)  # the first of an array
        show = ("scontrol", "show", "job", job)
        ask("sbatch", "--partition=high", f"--cpus-per-task={os.cpu_count()}", "--output=/dev/null",
            "--wrap=true")  # fmt: skip
        assert wait_for(restarts, "it was not queued again") == 1
        assert not psutil.pid_exists(preempted.pid)
        said = StudyDir(tmp_path / "runs/tiny").run("moc", 0).log.read_text()
        assert re.search(r"moc: stopped in phase facts at step \d+; the same command goes", said)
        # SLURM would wait two minutes
        wait_for(lambda: ask("squeue", "--states=R", "--noheader") == "" or None, "the other one")
        for each in (job, job.replace("_0", "_1")):  # the other may be at its end
            hurry = ["scontrol", "update", f"JobId={each}", "StartTime=now"]
            subprocess.run(hurry, env={**os.environ, **slurm}, capture_output=True)
        ends_well(launcher, log)
    assert " | again" not in log.read_text()  # that was SLURM's doing
    check_same(tmp_path, serial)


def test_the_launcher_is_asked_to_stop(tmp_path: Path, slurm: dict[str, str]) -> None:
    """Ctrl-C at a launcher of SLURM jobs. Kept: every job saves its step and ends, those that wait
    are taken out of the queue."""
    with launching(tmp_path, "first", "slurm", "launch.at_once=1", **slurm) as launcher:
        trains(tmp_path, "moc")
        launcher.send_signal(signal.SIGINT)
        assert launcher.wait(120) == 130
    environment = {**os.environ, **slurm}
    jobs = subprocess.run(
        ["squeue", "--noheader"], env=environment, capture_output=True, text=True, check=True
    )
    assert jobs.stdout == ""
    assert "moc: stopped in phase facts" in (
        StudyDir(tmp_path / "runs/tiny").run("moc", 0).log.read_text()
    )


def test_jobs_without_slurm(
    tmp_path: Path,
    serial: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """a SLURM job whose time is up; the process of a SLURM job killed. Kept: the first saves and
    is queued again, the second is submitted again, and both end in the weights of one process."""
    from moc.launch.slurm import Slurm

    monkeypatch.setattr(moc.study, "Tracker", NoTracker)
    monkeypatch.setattr("moc.launch.slurm._RESULT_SEC", 0.0)
    study = tiny_study(tmp_path, LONGER, "launch.cpus=1")
    executor = submitit.LocalExecutor(StudyDir(study.dir).slurm)
    executor.update_parameters(timeout_min=60)
    launcher = Slurm(resolve_study(study), executor)

    def disturb() -> None:
        job = psutil.Process(psutil.Process(trains(tmp_path, "moc").pid).ppid())
        job.send_signal(signal.SIGUSR2)
        os.kill(trains(tmp_path, "backbone").pid, signal.SIGKILL)

    disturbing = threading.Thread(target=disturb)
    disturbing.start()
    run_study(study, launcher=launcher)
    disturbing.join()
    check_same(tmp_path, serial)
    log = StudyDir(study.dir).run("moc", 0).log.read_text()
    assert log.count("moc: stopped in phase facts at step") == 1
    said = capsys.readouterr().out
    assert "backbone seed 0 | again, 1 of 3: signal SIGKILL ended it" in said
    assert "moc seed 0 | again" not in said


def test_no_slurm_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"--launch slurm: there is no SLURM here \(srun\)"):
        build_launcher("slurm", tiny_study(tmp_path))
    for name in ("srun", "sinfo"):
        (tmp_path / name).write_text("#!/bin/sh\nexit 1\n")
        (tmp_path / name).chmod(0o755)
    with pytest.raises(ConfigError, match=r"--launch slurm: SLURM does not answer"):
        build_launcher("slurm", tiny_study(tmp_path))
