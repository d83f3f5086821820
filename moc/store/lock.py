"""Who works on a run: one process at a time, and whoever finds it taken learns by whom."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import psutil
from filelock import FileLock

from moc.errors import RunGone, RunHeld
from moc.store.files import read_json, write_json

# Whoever starts a run as a task (``moc.launch``) gives all tries at it the same key, and starts one
# only when the one before has ended: what that left on a machine that is gone is nobody's.
TASK_VARIABLE = "MOC_TASK"

_held: set[Path] = set()  # by this process


class Holder(NamedTuple):
    host: str
    pid: int
    started: str  # see ``start_of``: the id alone may be another process's by now
    since: float  # Unix seconds
    task: str = ""  # its key, if it was started as one

    def __str__(self) -> str:
        since = datetime.fromtimestamp(self.since).astimezone()
        return f"process {self.pid} on {self.host} since {since:%Y-%m-%d %H:%M:%S}"


@contextmanager
def run_lock(run: Path) -> Iterator[None]:
    """Hold the run in the folder ``run``; a lock whose process is gone is taken over.

    Whether a process lives can be told on its own host alone: a lock of another host stays, unless
    it is of an earlier try of the same task.

    Raises:
        RunHeld: if another process holds it.
    """
    file = (run / "lock.json").resolve()
    run.mkdir(parents=True, exist_ok=True)
    task = os.environ.get(TASK_VARIABLE, "")
    mine = Holder(socket.gethostname(), os.getpid(), start_of(os.getpid()), time.time(), task)
    # two that find the same abandoned lock must not both take it over
    with FileLock(run / ".lock"):
        if (holder := holder_of(run, task)) is not None:
            raise RunHeld(f"{run} is held by {holder}{remedy(holder, run)}")
        write_json(file, mine._asdict())
    _held.add(file)
    try:
        yield
    finally:
        _held.discard(file)
        with suppress(OSError, ValueError):  # it goes stale with this process
            if read_json(file).get("pid") == os.getpid():
                file.unlink()


def check_held(run: Path) -> None:
    """
    Raises:
        RunGone: if this process held the run, and the folder says so no more.
    """
    file = (run / "lock.json").resolve()
    if file in _held and read_json(file).get("pid") != os.getpid():
        raise RunGone(
            f"{run} was removed, or taken over, while it was trained; nothing more is written "
            "there, and the same command trains what is missing"
        )


def release_all() -> None:
    """Before a process ends without leaving its ``run_lock``."""
    for file in _held:
        file.unlink(missing_ok=True)


def holder_of(run: Path, task: str = "") -> Holder | None:
    """Who works on the run in the folder ``run``; None if nobody does any more.

    Args:
        task: key of the task that the caller is, or has seen the end of.
    """
    try:
        record = read_json(run / "lock.json")
        holder = Holder(**record) if record else None
    except (ValueError, TypeError):  # of a crash in mid-air
        return None
    return holder if holder is not None and _is_alive(holder, task) else None


def lives(pid: int, started: str) -> bool:
    """Whether the process of this host that had this id and ``start_of`` is still there."""
    try:
        return start_of(pid) == started and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except (psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
        return False


def start_of(pid: int) -> str:
    """When a process of this host started, the same whoever asks and whenever. On Linux it is told
    by the boot and the ticks since then: seconds of a day would jump with the clock."""
    if sys.platform != "linux":
        return f"{psutil.Process(pid).create_time():.0f}"
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return f"{boot}/{fields[19]}"


def _is_alive(holder: Holder, task: str) -> bool:
    if holder.host == socket.gethostname():
        return lives(holder.pid, holder.started)
    return not task or holder.task != task


def remedy(holder: Holder, run: Path) -> str:
    """What to do about a ``run`` that is held, for the end of a line."""
    if holder.host == socket.gethostname():
        return " (this one)" * (holder.pid == os.getpid())
    return f"; if that process is gone, remove {run / 'lock.json'}"
