"""What SLURM says of a job, and what that means for its run. There is no SLURM here."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from moc.errors import ConfigError
from moc.launch.build import build_launcher
from moc.launch.launcher import End
from moc.launch.needs import Needs
from moc.launch.task import Task
from tests.support.helpers_training import tiny_study

submitit = pytest.importorskip("submitit", reason="pip install submitit")


class Executor:
    """Of submitit: two jobs that nobody runs."""

    def __init__(self, folder: Path, error: str | None = None) -> None:
        self.folder, self.error, self.jobs = folder, error, []

    @contextmanager
    def batch(self) -> Iterator[None]:
        yield
        if self.error is not None:
            raise submitit.core.utils.FailedJobError(self.error)

    def submit(self, task: object) -> Any:
        job = submitit.SlurmJob(self.folder, f"7_{len(self.jobs)}")
        self.jobs.append(job)
        return job


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What squeue answers; what else was asked for."""
    found: dict[str, Any] = {"squeue": "", "commands": []}

    def ask(*command: str) -> str | None:
        if command[0] == "squeue":
            return found["squeue"]
        found["commands"].append(" ".join(command))
        return ""

    monkeypatch.setattr("moc.launch.slurm._ask", ask)
    monkeypatch.setattr("moc.launch.slurm._LOOK_SEC", -1.0)
    monkeypatch.setattr("moc.launch.slurm._RESULT_SEC", 0.0)
    return found


def jobs_of(folder: Path, error: str | None = None) -> list[Any]:
    from moc.launch.slurm import Slurm

    launcher = Slurm(tiny_study(folder), Executor(folder, error))
    task = Task(folder / "study.yaml", "moc", 0, folder / "log.txt", "key", launcher.cpus)
    return launcher.submit([task] * 2)


@pytest.mark.parametrize(
    ("states", "end"),
    [
        ("7_0 RUNNING", None),
        ("7_0 PENDING\n7_1 FAILED", None),
        ("7_0 COMPLETING", None),
        ("7_0 REQUEUED", None),
        (None, None),  # SLURM does not answer: nothing is known
        ("7_0 NODE_FAIL", End(-signal.SIGKILL, "SLURM says NODE_FAIL")),
        ("7_0 OUT_OF_MEMORY", End(-signal.SIGKILL, "SLURM says OUT_OF_MEMORY")),
        ("7_1 RUNNING", End(-signal.SIGKILL, "SLURM says UNKNOWN")),
        ("7_0 CANCELLED", End(143, "it was cancelled in SLURM", again=False)),
    ],
)
def test_how_a_job_ended(
    tmp_path: Path, asked: dict[str, Any], states: str | None, end: End | None
) -> None:
    first, _ = jobs_of(tmp_path)
    asked["squeue"] = states
    assert first.end() == end
    if end is None:  # what is not known to have ended may still have a result
        submitit.core.utils.cloudpickle_dump(("success", 2), first._job.paths.result_pickle)
        assert first.end() == End(2)


def test_a_job_that_cannot_begin_says_why(tmp_path: Path, asked: dict[str, Any]) -> None:
    first, _ = jobs_of(tmp_path)
    failed = ("error", "Traceback:\n  ...\nModuleNotFoundError: No module named 'moc'\n")
    submitit.core.utils.cloudpickle_dump(failed, first._job.paths.result_pickle)
    assert first.end() == End(1, "ModuleNotFoundError: No module named 'moc'")


def test_jobs_are_stopped_with_time_to_save(tmp_path: Path, asked: dict[str, Any]) -> None:
    asked["squeue"] = "7_0 RUNNING\n7_1 COMPLETED"
    first, second = jobs_of(tmp_path)
    first.stop()
    assert asked["commands"] == ["scancel --state=PENDING 7_0", "scancel --signal=TERM 7_0"]
    first.kill(), second.kill()
    assert asked["commands"][2:] == ["scancel 7_0"]


def test_sbatch_refuses(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^--launch slurm: sbatch: error: no such partition$"):
        jobs_of(tmp_path, "Command failed\nsbatch: error: no such partition\n")


def test_what_a_run_asks_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpus, gpus, memory = Needs.of(tiny_study(tmp_path))
    assert (cpus, gpus) == (1, 0) and 0.9e9 < memory < 1.0e9
    few = Needs.of(tiny_study(tmp_path, "launch.memory_gb=2", "launch.gpus=1", "launch.cpus=4"))
    assert few == (4, 1, 2_000_000_000)
    with pytest.raises(ConfigError, match=r"each run has one device; set trainer.devices=1"):
        Needs.of(tiny_study(tmp_path, "trainer.devices=2"))
    with pytest.raises(ConfigError, match=r"launch.gpus 0.5: SLURM gives whole ones"):
        build_launcher("slurm", tiny_study(tmp_path, "launch.gpus=0.5"))


@pytest.mark.parametrize(("words", "package"), [("slurm", "submitit"), ("ray", "ray")])
def test_what_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str, package: str
) -> None:
    for name in ("moc.launch.slurm", "moc.launch.on_ray"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=rf"{words} needs {package}: pip install {package}$"):
        build_launcher(words, tiny_study(tmp_path))
