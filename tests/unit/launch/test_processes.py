"""How many processes a machine has room for, and what each is given."""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from moc.errors import ConfigError
from moc.launch import processes
from moc.launch.build import build_launcher
from moc.run.arm_seed import ArmSeed
from tests.support.helpers_training import tiny_study


@pytest.fixture(autouse=True)
def four_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_num_cores", lambda: 4)


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
    assert launcher is not None
    given = []
    ended: list[Any] = [None, None, None]

    def start(command: list[str], env: dict[str, str], **_: Any) -> Any:
        given.append((env["CUDA_VISIBLE_DEVICES"], env["OMP_NUM_THREADS"]))
        number = len(given) - 1
        return SimpleNamespace(pid=7, poll=lambda: ended[number])

    monkeypatch.setattr(subprocess, "Popen", start)
    run = ArmSeed(study, "moc", 0, SimpleNamespace(fingerprint="t"))  # type: ignore[arg-type]
    first, _ = launcher.submit(run), launcher.submit(run)
    assert first.exit_code() is None
    ended[0] = 0
    assert first.exit_code() == 0 and first.exit_code() == 0  # its GPU is given back once
    launcher.submit(run)
    assert given == [("5", "2"), ("2", "2"), ("5", "2")]
