"""Who works on a run: one process at a time, and whoever finds it taken learns by whom."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import psutil
from filelock import FileLock

from moc.errors import RunHeld
from moc.store.files import read_json, write_json

_SAME_PROCESS_SEC = 2.0  # a process id comes back with another start; clocks tick coarsely


class Holder(NamedTuple):
    host: str
    pid: int
    started: float  # Unix seconds, of the process: its id alone may be somebody else's by now
    since: float  # Unix seconds

    def __str__(self) -> str:
        since = datetime.fromtimestamp(self.since).astimezone()
        return f"process {self.pid} on {self.host} since {since:%Y-%m-%d %H:%M:%S}"


@contextmanager
def run_lock(run: Path) -> Iterator[None]:
    """Hold the run in the folder ``run``; a lock whose process is gone is taken over.

    Whether a process lives can be told on its own host alone: a lock of another host stays.

    Raises:
        RunHeld: if another process holds it.
    """
    file = run / "lock.json"
    run.mkdir(parents=True, exist_ok=True)
    me = psutil.Process()
    mine = Holder(socket.gethostname(), me.pid, me.create_time(), time.time())
    # two that find the same abandoned lock must not both take it over
    with FileLock(run / ".lock"):
        if (holder := holder_of(run)) is not None:
            raise RunHeld(f"{run} is held by {holder}{_remedy(holder, file)}")
        write_json(file, mine._asdict())
    try:
        yield
    finally:
        file.unlink(missing_ok=True)


def holder_of(run: Path) -> Holder | None:
    """Who works on the run in the folder ``run``; None if nobody does any more."""
    try:
        record = read_json(run / "lock.json")
        holder = Holder(**record) if record else None
    except (ValueError, TypeError):  # of a crash in mid-air
        return None
    return holder if holder is not None and _is_alive(holder) else None


def _is_alive(holder: Holder) -> bool:
    if holder.host != socket.gethostname():
        return True
    try:
        process = psutil.Process(holder.pid)
        same = abs(process.create_time() - holder.started) < _SAME_PROCESS_SEC
        return same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _remedy(holder: Holder, file: Path) -> str:
    if holder.host == socket.gethostname():
        return " (this one)" * (holder.pid == os.getpid())
    return f"; if that process is gone, remove {file}"
