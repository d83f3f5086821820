"""The tiny study on two ranks."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from tests.conftest import Run
from tests.support.helpers_runs import check_same, run_dir
from tests.support.helpers_training import write_tiny_study

Undisturbed = Callable[[str], dict[str, Any]]  # by strategy: the outcome of two ranks

TWO = ["trainer.devices=2", "phases.facts.micro_batch=2", "phases.skills.micro_batch=1"]


class Ranks:
    """``ranks(*overrides, fault=...)``: run the study's memory arm in ``folder`` on two ranks, as
    torchrun would; their exit codes and outputs."""

    def __init__(self, folder: Path, cache: Path, in_child: Run) -> None:
        self.folder, self.cache, self.in_child = folder, cache, in_child

    def __call__(self, *overrides: str, **faults: Any) -> tuple[list[int | None], list[str]]:
        study, log = write_tiny_study(self.folder), self.folder / "log"
        argv = ["run", str(study), "--arms", "moc", f"cache_dir={self.cache}", *TWO, *overrides]
        codes = self.in_child("command", log=log, env=launched_by_torchrun(2), argv=argv, **faults)
        return codes, [log.read_text(), Path(f"{log}.1").read_text()]

    @property
    def run_dir(self) -> Path:
        return run_dir(self.folder)

    def checkpoints(self) -> list[str]:
        return sorted(path.name for path in (self.run_dir / "checkpoints").glob("*"))

    def check_same(self, undisturbed: dict[str, Any]) -> None:
        check_same(self.folder, undisturbed)


def launched_by_torchrun(world_size: int) -> list[dict[str, str]]:
    """The variables that torchrun sets for each process."""
    common = {
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "GROUP_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "TORCHELASTIC_RUN_ID": "test",
    }
    return [{**common, "RANK": str(r), "LOCAL_RANK": str(r)} for r in range(world_size)]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def left_alone(session: int, within_sec: float = 20.0) -> bool:
    """Whether, soon, no process of ``session`` is alive: a command that was started in a session of
    its own, and all that it has started."""
    deadline = time.monotonic() + within_sec
    while time.monotonic() < deadline:
        if not any(_is_of(process, session) for process in psutil.process_iter()):
            return True
        time.sleep(0.1)
    return False


def _is_of(process: psutil.Process, session: int) -> bool:
    try:
        return os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.NoSuchProcess, ProcessLookupError):
        return False
