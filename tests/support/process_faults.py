"""Faults of processes and of the machine, at a chosen moment of a run.

``{"at": one of PLACES, "do": one of DEEDS, ...}`` and what the place and the deed ask for; with
``rank``, on that rank alone.
"""

from __future__ import annotations

import builtins
import ctypes
import errno
import os
import resource
import shutil
import signal
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import moc.study
import moc.train.checkpoints
import moc.train.step
from moc.cli import main
from moc.data.module import StepDataset
from moc.evaluate.evaluator import BoundaryEvaluator
from moc.store.journal import Journal
from moc.train.distributed import launched_rank
from moc.train.module import StudyModule
from tests.support.spoiling import spoiled

Deed = Callable[[], None]


def install(at: str, do: str, rank: int | None = None, **options: Any) -> None:
    if rank is not None and launched_rank(2) != rank:
        return
    place = {key: options.pop(key) for key in ("phase", "step", "boundary") if key in options}
    PLACES[at](lambda: DEEDS[do](**options), **place)


def _before_step(deed: Deed, *, phase: str, step: int) -> None:
    """``step`` counts from 1."""
    training_step = StudyModule.training_step

    def disturbed(self: StudyModule, *arguments: Any) -> Any:
        if (self.trainer.logger.phase, self.step + 1) == (phase, step):  # type: ignore[union-attr]
            deed()
        return training_step(self, *arguments)

    StudyModule.training_step = disturbed  # type: ignore[method-assign]


def _in_the_loader(deed: Deed, *, step: int) -> None:
    """When the batch of ``step`` (from 1, of any phase) is made, by a worker if there are any."""
    get = StepDataset.__getitem__

    def disturbed(self: StepDataset, index: int) -> Any:
        if index + 1 == step:
            deed()
        return get(self, index)

    StepDataset.__getitem__ = disturbed  # type: ignore[method-assign]


def _while_saving(deed: Deed, *, step: int) -> None:
    """With the weights of a checkpoint on disk, and its manifest not."""
    write_manifest = moc.train.checkpoints.write_manifest

    def disturbed(folder: Path, **facts: Any) -> None:
        if facts["step"] == step:
            deed()
        write_manifest(folder, **facts)

    moc.train.checkpoints.write_manifest = disturbed


def _while_preparing_data(deed: Deed) -> None:
    build = moc.study._build_data

    def disturbed(*arguments: Any) -> Any:
        deed()
        return build(*arguments)

    moc.study._build_data = disturbed


def _while_evaluating(deed: Deed, *, boundary: int = 0) -> None:
    """``boundary`` counts the evaluations of this process, from 0."""
    score, seen = BoundaryEvaluator.score, iter(range(100))

    def disturbed(self: BoundaryEvaluator, *arguments: Any) -> Any:
        if next(seen) == boundary:
            deed()
        return score(self, *arguments)

    BoundaryEvaluator.score = disturbed  # type: ignore[method-assign]


def _while_reporting(deed: Deed) -> None:
    def disturbed(folder: Path) -> Path:
        deed()
        return folder / "report"

    moc.study.build_report = disturbed  # type: ignore[assignment]


def _while_journaling(deed: Deed, *, step: int) -> None:
    """With 20 bytes of the step's record in the file; the next try succeeds."""
    write, failing = Journal._write, [True]

    def disturbed(self: Journal, record: Any) -> None:
        if record.get("step") == step and self._file is not None and failing:
            self._file = _Failing(self._file, deed, failing)  # type: ignore[assignment]
        write(self, record)

    Journal._write = disturbed  # type: ignore[method-assign]


class _Failing:
    def __init__(self, file: Any, deed: Deed, failing: list[bool]) -> None:
        self.file, self.deed, self.failing = file, deed, failing

    def write(self, line: bytes) -> int:
        if self.failing:
            self.failing.clear()
            self.file.write(line[:20])
            self.deed()
        return self.file.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


PLACES: dict[str, Callable[..., None]] = {
    "before step": _before_step,
    "in the loader": _in_the_loader,
    "while saving": _while_saving,
    "while preparing data": _while_preparing_data,
    "while evaluating": _while_evaluating,
    "while reporting": _while_reporting,
    "while journaling": _while_journaling,
}


def _signal(*, number: int, times: int = 1, apart_sec: float = 0.0, group: bool = False) -> None:
    for again in range(times):
        time.sleep(apart_sec if again else 0)
        if group:
            os.killpg(0, number)
        else:
            os.kill(os.getpid(), number)


def _kill_a_worker() -> None:
    """Called in a loader's worker."""
    assert torch.utils.data.get_worker_info() is not None
    os.kill(os.getpid(), signal.SIGKILL)


def _spoil_the_loss(*, factor: float) -> None:
    """Of the coming step, of two micro-batches."""
    moc.train.step.predict = spoiled(lambda index, loss: loss * factor if index < 2 else loss)


def _fail(*, error: str, message: str = "") -> None:
    number = getattr(errno, error, None)
    if number is not None:
        raise OSError(number, os.strerror(number), message or None)
    raise getattr(builtins, error)(message)


def _fill(*, folder: str, spare: int = 0) -> None:
    """The disk below ``folder``, but for ``spare`` bytes."""
    filler = os.open(f"{folder}/filler", os.O_WRONLY | os.O_CREAT)
    try:
        while True:
            os.write(filler, bytes(4096))
    except OSError:
        os.truncate(filler, os.fstat(filler).st_size - spare)


def _forbid(*, folder: str) -> None:
    """To write in ``folder``; to root as well, once it has given up overriding."""
    if os.geteuid() == 0:
        header, sets = struct.pack("II", 0x20080522, 0), ctypes.create_string_buffer(24)
        assert ctypes.CDLL(None).capget(header, sets) == 0
        effective, *others = struct.unpack("6I", sets.raw)
        without = struct.pack("6I", effective & ~0b110, *others)  # CAP_DAC_OVERRIDE, _READ_SEARCH
        assert ctypes.CDLL(None).capset(header, without) == 0
    os.chmod(folder, 0o500)


def _no_more_files() -> None:
    number = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (number - 1, number - 1))


def _turn_back_the_clock(*, sec: float) -> None:
    now = time.time
    time.time = lambda: now() - sec  # type: ignore[assignment]


def _start_another(*, argv: list[str], log: str, number: int | None = None) -> None:
    """The same command, in a process of its own, after a signal ``number`` to this one."""
    if number is not None:
        os.kill(os.getpid(), number)
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        return
    file = os.open(log, os.O_WRONLY | os.O_CREAT)
    os.dup2(file, 1)
    os.dup2(file, 2)
    code = main(argv)
    sys.stdout.flush()
    os._exit(code)


def _ask_for_memory() -> None:
    torch.empty(2**46, dtype=torch.uint8).fill_(1)


def _remove(*, folder: str) -> None:
    shutil.rmtree(folder)


DEEDS: dict[str, Callable[..., None]] = {
    "signal": _signal,
    "sleep": lambda *, sec: time.sleep(sec),
    "kill a worker": _kill_a_worker,
    "spoil the loss": _spoil_the_loss,
    "fail": _fail,
    "ask for memory": _ask_for_memory,
    "remove": _remove,
    "fill": _fill,
    "forbid": _forbid,
    "no more files": _no_more_files,
    "turn back the clock": _turn_back_the_clock,
    "start another": _start_another,
}
