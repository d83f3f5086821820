"""Who holds a run: one process at a time, and only as long as it lives."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from moc.errors import RunHeld
from moc.store.files import read_json, write_json
from moc.store.lock import holder_of, run_lock, start_of


def test_a_held_run_says_who_holds_it_and_is_free_afterwards(tmp_path: Path) -> None:
    run = tmp_path / "arms/moc/seed-0"
    with run_lock(run):
        holder = holder_of(run)
        assert holder is not None and (holder.host, holder.pid) == (
            socket.gethostname(),
            os.getpid(),
        )
        with (
            pytest.raises(
                RunHeld, match=f"moc/seed-0 is held by process {os.getpid()} on "
            ) as held,
            run_lock(run),
        ):
            pass
        assert "\n" not in str(held.value) and time.strftime("%Y-%m-%d") in str(held.value)
    assert holder_of(run) is None
    with run_lock(run):
        pass


def test_another_process_cannot_take_it(tmp_path: Path) -> None:
    program = (
        "import sys, pathlib; from moc.store.lock import run_lock\n"
        "with run_lock(pathlib.Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    root = Path(__file__).parents[3]
    with subprocess.Popen(
        command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with pytest.raises(RunHeld, match=f"process {other.pid} "), run_lock(tmp_path):
            pass
        other.kill()
        other.wait()
        with run_lock(tmp_path):  # its process is gone: taken over
            holder = holder_of(tmp_path)
            assert holder is not None and holder.pid == os.getpid()


def test_a_process_id_that_came_back_is_another_process(tmp_path: Path) -> None:
    _write(tmp_path, started="another boot/1")
    with run_lock(tmp_path):
        pass


def test_a_zombie_works_on_nothing(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    process = psutil.Process(child.pid)
    _write(tmp_path, pid=child.pid, started=start_of(child.pid))
    while process.status() != psutil.STATUS_ZOMBIE:  # until we wait for it
        time.sleep(0.01)
    assert holder_of(tmp_path) is None
    child.wait()


def test_of_another_host_nobody_knows_here(tmp_path: Path) -> None:
    _write(tmp_path, host="elsewhere", pid=1)
    with (
        pytest.raises(
            RunHeld, match=r"on elsewhere.*; if that process is gone, remove .*lock\.json"
        ),
        run_lock(tmp_path),
    ):
        pass


@pytest.mark.parametrize("torn", ["", "{", '{"host": "a"}', "[]"])
def test_a_torn_lock_is_nobodys(tmp_path: Path, torn: str) -> None:
    (tmp_path / "lock.json").write_text(torn)
    with run_lock(tmp_path):
        pass


def _write(run: Path, **changes: object) -> None:
    mine = psutil.Process()
    record = {"host": socket.gethostname(), "pid": mine.pid, "started": start_of(mine.pid)}
    (run / "lock.json").write_text(json.dumps(record | {"since": time.time()} | changes))


def test_what_a_dead_machine_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That cannot be told; but a task is tried again only when the try before has ended."""
    monkeypatch.setenv("MOC_TASK", "a launcher's/moc seed 0")
    with run_lock(tmp_path):
        left = read_json(tmp_path / "lock.json")
        assert left["task"] == "a launcher's/moc seed 0"
        assert holder_of(tmp_path, left["task"]) is not None  # this process lives
    write_json(tmp_path / "lock.json", left | {"host": "another"})
    assert holder_of(tmp_path) is not None and holder_of(tmp_path, "another task") is not None
    assert holder_of(tmp_path, left["task"]) is None
    monkeypatch.setenv("MOC_TASK", "another task")
    with pytest.raises(RunHeld, match=r"on another .* remove .*lock\.json"), run_lock(tmp_path):
        pass
    monkeypatch.setenv("MOC_TASK", left["task"])
    with run_lock(tmp_path):
        assert read_json(tmp_path / "lock.json")["host"] == socket.gethostname()
