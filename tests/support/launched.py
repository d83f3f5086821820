"""Runs that a launcher starts: the tiny study, long enough to be killed in, and how it must end."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import psutil

from moc.store.files import read_json
from moc.store.journal import read_end
from moc.store.lock import Holder, holder_of
from moc.store.rundir import RunDir, StudyDir
from tests.conftest import ROOT, Run
from tests.support.helpers_training import write_tiny_study

LONGER = "phases.facts.tokens=32768"  # 128 steps
WITHIN_SEC = 240

T = TypeVar("T")


def one_process(folder: Path, in_child: Run) -> Path:
    """The study's folder, all runs of it done by one process."""
    folder.mkdir(exist_ok=True)
    argv = ["run", str(write_tiny_study(folder)), LONGER, "launch.cpus=1"]
    assert in_child("command", log=folder / "log", argv=argv) == [0], (folder / "log").read_text()
    return folder / "runs/tiny"


@contextmanager
def launching(
    folder: Path, log: str, launch: str, *overrides: str, **environment: str
) -> Iterator[subprocess.Popen[bytes]]:
    """``moc run --launch LAUNCH`` of the tiny study, which is ended in the end."""
    command = [sys.executable, "-m", "moc", "run", str(write_tiny_study(folder)), LONGER]
    with (folder / log).open("w") as out:
        process = subprocess.Popen(
            [*command, "--launch", launch, "launch.cpus=1", *overrides],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for run in runs_of(folder):
            if (holder := holder_of(run.path)) is not None:
                psutil.Process(holder.pid).kill()


def ends_well(launcher: subprocess.Popen[bytes], log: Path) -> None:
    assert launcher.wait(WITHIN_SEC) == 0, log.read_text()


def trains(folder: Path, arm: str, but: Holder | None = None) -> Holder:
    """Who trains the arm's run, once it has recorded a step."""
    run = StudyDir(folder / "runs/tiny").run(arm, 0)

    def begun() -> Holder | None:
        holder = holder_of(run.path)
        if holder is None or holder == but:
            return None
        records = [r for r in read_end(run.journal().path) if r["time"] > holder.since]
        return holder if any(record["step"] > 0 for record in records) else None

    return wait_for(begun, f"{run.path} does not train")


def wait_for(look: Callable[[], T | None], otherwise: str) -> T:
    deadline = time.monotonic() + WITHIN_SEC
    while time.monotonic() < deadline:
        if (found := look()) is not None:
            return found
        time.sleep(0.01)
    raise AssertionError(otherwise)


def check_same(folder: Path, serial: Path) -> None:
    """Every run is at its end, in the weights of one process, to the bit."""
    files = sorted(serial.rglob("model.safetensors"))
    assert len(files) == 6
    for file in files:
        name = file.relative_to(serial)
        assert (folder / "runs/tiny" / name).read_bytes() == file.read_bytes(), name
    for run in runs_of(folder):
        assert read_json(run.info)["status"] == "finished"


def runs_of(folder: Path) -> Sequence[RunDir]:
    return [StudyDir(folder / "runs/tiny").run(arm, 0) for arm in ("moc", "backbone")]
