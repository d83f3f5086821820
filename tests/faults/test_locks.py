"""Who works on a run, when processes come and go and clocks jump."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from moc.store.files import write_json
from moc.store.journal import read
from moc.store.lock import holder_of, run_lock, start_of
from tests.support.helpers_runs import Moc, check_same, complaint, contents, run_dir
from tests.support.helpers_training import write_tiny_study

KILL = {"do": "signal", "number": signal.SIGKILL}


def test_two_runs_in_one_folder(moc: Moc, tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    """two runs in one folder. Kept: the second ends in one line that says who holds the run, and
    touches nothing."""
    code, _ = moc(fault={"at": "before step", "phase": "facts", "step": 5, **KILL})
    assert code == -signal.SIGKILL
    with run_lock(run_dir(tmp_path)):
        before = contents(tmp_path)
        code, log = moc()
        assert code == 1, log
        assert f"is held by process {os.getpid()} on {socket.gethostname()} since" in complaint(log)
        assert contents(tmp_path) == before
    code, log = moc()
    assert code == 0, log
    check_same(tmp_path, undisturbed)


@pytest.mark.parametrize("number", [None, signal.SIGTERM], ids=["it runs", "it was asked to stop"])
def test_the_last_one_still_writes(
    moc: Moc, tmp_path: Path, cache: Path, undisturbed: dict[str, Any], number: int | None
) -> None:
    """a run started while the last one still writes. Kept: the first saves, undisturbed; the second
    ends in one line."""
    study, log_of_second = write_tiny_study(tmp_path), tmp_path / "second"
    argv = ["run", str(study), "--arms", "moc", f"cache_dir={cache}"]
    fault = {"at": "while saving", "step": 3, "do": "start another", "argv": argv}
    code, log = moc(fault={**fault, "log": str(log_of_second), "number": number})
    assert "seed-0 is held by process " in complaint(log_of_second.read_text())
    if number is not None:
        assert code == 143 and "phase facts at step 4" in complaint(log), log
        code, log = moc()
    assert code == 0, log
    check_same(tmp_path, undisturbed)


def test_a_lock_that_nobody_holds(moc: Moc, tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    """a stale lock. Kept: a lock is taken over if its process is gone, its number another's by now,
    or the file torn; one of another host is named, with what to do."""
    file = run_dir(tmp_path) / "lock.json"
    here = {"host": socket.gethostname(), "since": time.time()}
    started = start_of(os.getpid())
    write_json(file, {**here, "host": "elsewhere", "pid": 1, "started": started})
    code, log = moc()
    assert code == 1, log
    assert "process 1 on elsewhere since" in complaint(log)
    assert f"if that process is gone, remove {file}" in complaint(log)
    file.unlink()
    stale: list[Any] = [
        {**here, "pid": 2**22 - 7, "started": started},
        {**here, "pid": os.getpid(), "started": "an earlier boot/17"},
    ]
    for record, step in zip(stale, (2, 5), strict=True):
        write_json(file, record)
        code, log = moc(fault={"at": "before step", "phase": "facts", "step": step, **KILL})
        assert code == -signal.SIGKILL, log  # it was taken over
    file.write_text(json.dumps(stale[0])[:20])
    code, log = moc()
    assert code == 0, log
    check_same(tmp_path, undisturbed)


def test_the_clock_jumps(
    moc: Moc, tmp_path: Path, undisturbed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """a clock that jumps. Kept: journals, locks and weights, whether it jumps inside a run or
    between two, forward or back."""
    clock = {"at": "before step", "phase": "facts", "do": "turn back the clock"}
    kill = {"at": "after step", "phase": "facts", "step": 5}
    code, log = moc(fault={**clock, "step": 2, "sec": -86_400}, stop=kill)  # a day on
    assert code == -signal.SIGKILL, log
    code, log = moc(fault={**clock, "step": 6, "sec": 172_800})  # and two days back
    assert code == 0, log
    times = [record["time"] for record in read(run_dir(tmp_path) / "metrics.jsonl")]
    assert max(times) - min(times) > 80_000
    check_same(tmp_path, undisturbed)
    with run_lock(tmp_path):  # psutil tells a process's start by the clock of today
        monkeypatch.setattr(psutil.Process, "create_time", lambda _: time.time() + 3600)
        assert holder_of(tmp_path) is not None
