"""How many processes a machine has room for, and what each is given."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest

from moc.errors import ConfigError
from moc.launch import processes
from moc.launch.build import build_launcher
from moc.launch.launcher import End
from moc.launch.task import Task
from tests.support.helpers_training import tiny_study


@pytest.fixture(autouse=True)
def four_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_num_cores", lambda: 4)
    monkeypatch.setattr(processes.multiprocessing.forkserver, "ensure_running", lambda: None)


def test_no_words_are_no_launcher(tmp_path: Path) -> None:
    assert build_launcher(None, tiny_study(tmp_path)) is None


@pytest.mark.parametrize("words", ["process:2", "processes", "processes:", "processes:0", "x" * 99])
def test_words_that_name_no_launcher(tmp_path: Path, words: str) -> None:
    with pytest.raises(ConfigError, match=r"--launch .*processes:[N2]") as caught:
        build_launcher(words, tiny_study(tmp_path))
    assert len(str(caught.value)) < 150


@pytest.mark.parametrize(
    ("words", "overrides", "cpus"),
    [("processes:1", (), 4), ("processes:3", (), 1), ("processes:2", ("launch.cpus=1",), 1)],
)
def test_the_cores_are_shared(
    tmp_path: Path, words: str, overrides: tuple[str, ...], cpus: int
) -> None:
    launcher = build_launcher(words, tiny_study(tmp_path, *overrides))
    assert launcher is not None and launcher.cpus == cpus
    assert launcher.at_once == int(words[-1])


def test_more_threads_than_cores_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"8 threads for 4 cores, .*; at most processes:2"):
        build_launcher("processes:4", tiny_study(tmp_path, "launch.cpus=2"))
    with pytest.raises(ConfigError, match=r"5 threads for 4 cores, .*; at most processes:4"):
        build_launcher("processes:5", tiny_study(tmp_path))


def test_more_memory_than_there_is_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = SimpleNamespace(total=2_000_000_000)
    monkeypatch.setattr(processes.psutil, "virtual_memory", lambda: memory)
    assert build_launcher("processes:3", tiny_study(tmp_path)) is not None
    with pytest.raises(ConfigError, match=r"this machine has 2.00 GB; at most processes:3"):
        build_launcher("processes:4", tiny_study(tmp_path))


def test_a_run_has_one_device(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"set trainer.devices=1"):
        build_launcher("processes:2", tiny_study(tmp_path, "trainer.devices=2"))


def test_each_run_has_a_gpu_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = tiny_study(tmp_path, "trainer.devices=1")
    monkeypatch.setattr(processes, "accelerator_of", lambda _: "gpu")
    monkeypatch.setattr(processes, "total_devices", lambda _: 1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    with pytest.raises(ConfigError, match=r"this machine has 2 GPUs"):
        build_launcher("processes:3", study)
    launcher = build_launcher("processes:2", study)
    assert isinstance(launcher, processes.Processes)
    given, started = [], []

    def start(target: Any, args: tuple[Task, dict[str, str]]) -> Any:
        given.append((args[1]["CUDA_VISIBLE_DEVICES"], args[1]["OMP_NUM_THREADS"]))
        started.append(Mock(pid=7, exitcode=None))
        return started[-1]

    monkeypatch.setattr(launcher, "_server", SimpleNamespace(Process=start))
    task = Task(tmp_path / "study.yaml", "moc", 0, tmp_path / "log.txt", "key", launcher.cpus)
    first, _ = launcher.submit([task] * 2)
    assert first.end() is None
    started[0].exitcode = 0
    assert first.end() == End(0) and first.end() == End(0)  # its GPU is given back once
    list(launcher.submit([task]))
    assert given == [("5", "2"), ("2", "2"), ("5", "2")]


def test_several_runs_share_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "accelerator_of", lambda _: "gpu")
    monkeypatch.setattr(processes, "total_devices", lambda _: 1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    study = tiny_study(tmp_path, "launch.gpus=0.5")
    assert build_launcher("processes:4", study) is not None
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2")
    with pytest.raises(ConfigError, match=r"this machine has 1 GPUs; a run has 0.5"):
        build_launcher("processes:3", study)


def test_what_runs_are_forked_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process with the threads and the variables of a run; this one keeps its own."""
    seen: list[dict[str, str]] = []
    server = processes.multiprocessing.forkserver
    monkeypatch.setattr(server, "ensure_running", lambda: seen.append(dict(os.environ)))
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    study = tiny_study(tmp_path, "launch.cpus=2", "launch.environment={NCCL_DEBUG: INFO}")
    build_launcher("processes:2", study)
    assert seen[0]["OMP_NUM_THREADS"] == "2" and seen[0]["NCCL_DEBUG"] == "INFO"
    assert os.environ["OMP_NUM_THREADS"] == "7" and "NCCL_DEBUG" not in os.environ
