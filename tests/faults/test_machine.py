"""The machine gives out: one line says what happened, what is safe, and what to do."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.support.helpers_runs import Moc, check_same, complaint, run_dir
from tests.support.helpers_training import write_tiny_study

STEP_5 = {"at": "before step", "phase": "facts", "step": 5}
UP_TO_3 = "moc seed 0: {what}; phase facts is saved up to step 3; "


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """``tmp_path/runs``, on a file system of 4 MB."""
    folder = tmp_path / "runs"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting is not allowed here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_the_disk_is_full(
    moc: Moc, tmp_path: Path, small_disk: Path, undisturbed: dict[str, Any]
) -> None:
    """disk full. Kept: everything up to the last checkpoint; with room again the same command ends
    in the same weights."""
    step_2, step_3 = ({"at": "before step", "phase": "facts", "step": n} for n in (2, 3))
    none = "no step was saved yet"
    full: list[tuple[dict[str, Any], int, str]] = [
        (step_2, 0, none),  # a journal's record
        (step_3, 200_000, none),  # a checkpoint's weights
        ({"at": "while saving", "step": 3}, 0, none),  # its manifest
        ({"at": "while evaluating", "boundary": 0}, 0, "phase facts is saved to its end"),
    ]
    for place, spare, safe in full:
        fault = {**place, "do": "fill", "folder": str(small_disk), "spare": spare}
        code, log = moc(fault=fault)
        assert code == 1, log
        assert "moc seed 0: the disk is full" in complaint(log), log
        assert f"{safe}; free some space, then the same command" in complaint(log)
        (small_disk / "filler").unlink()
        assert not list(small_disk.rglob("*.partial"))
    code, log = moc(fault={"at": "while preparing data", "do": "fail", "error": "ENOSPC"})
    assert code == 1 and "moc: the disk is full; what was saved is whole; " in complaint(log)
    code, log = moc()
    assert code == 0, log
    check_same(tmp_path, undisturbed)


def test_permission_is_denied(moc: Moc, tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    """permission denied. Kept: everything up to the last checkpoint; with the permission back the
    same command ends in the same weights."""
    folder = run_dir(tmp_path) / "checkpoints"
    code, log = moc(fault={**STEP_5, "do": "forbid", "folder": str(folder)})
    folder.chmod(0o700)
    assert code == 1, log
    what = f"permission denied ({folder / 'facts-00000006.partial'})"
    assert UP_TO_3.format(what=what) + "make it readable and writable" in complaint(log), log
    code, log = moc()
    assert code == 0, log
    check_same(tmp_path, undisturbed)


def test_memory_runs_out(moc: Moc, tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    """out of memory. Kept: everything up to the last checkpoint; one line says what `moc plan`
    expected and which settings halve it, and none is changed silently."""
    code, log = moc(fault={**STEP_5, "do": "ask for memory"})
    assert code == 1, log
    what = "out of memory (it asked for 70368744177664 bytes more)"
    assert UP_TO_3.format(what=what) in complaint(log), log
    plan = "'moc plan' expects 720 kB of weights and moments and about 714 kB of activations at"
    halves = "micro_batch 4; phases.facts.micro_batch=2 halves the activations; "
    assert f"{plan} {halves}" in complaint(log), log
    place = {"at": "in the loader", "step": 5}
    code, log = moc("trainer.num_workers=1", fault={**place, "do": "fail", "error": "MemoryError"})
    assert code == 1 and UP_TO_3.format(what="out of memory") in complaint(log), log
    code, log = moc(
        fault={"at": "while evaluating", "boundary": 0, "do": "fail", "error": "MemoryError"}
    )
    assert code == 1, log
    assert "the same command with evals.batch_size=32 needs about half" in complaint(log), log
    code, log = moc("evals.batch_size=32")
    assert code == 0, log
    check_same(tmp_path, undisturbed)


def test_a_worker_is_killed(moc: Moc, tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    """a loader's worker killed. Kept: everything up to the last checkpoint."""
    place = {"at": "in the loader", "step": 6}
    code, log = moc("trainer.num_workers=2", fault={**place, "do": "kill a worker"})
    assert code == 1, log
    assert "a process that loads data is killed by signal: Killed" in complaint(log), log
    assert "free memory or lower trainer.num_workers, then the same command" in complaint(log)
    code, log = moc("trainer.num_workers=1", fault={**place, "do": "fail", "error": "KeyError"})
    assert code != 0 and "Traceback" in log and "KeyError" in log  # a bug is shown as one
    code, log = moc("trainer.num_workers=1")
    assert code == 0, log
    check_same(tmp_path, undisturbed)


def test_a_journal_cannot_be_written(moc: Moc, tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    """a journal's I/O error. Kept: every record up to the last checkpoint, once; what was torn is
    cut and logged again."""
    code, log = moc(fault={"at": "while journaling", "step": 5, "do": "fail", "error": "EIO"})
    assert code == 1, log
    what = "the disk failed to read or write"
    assert UP_TO_3.format(what=what) + "see what the system's log says" in complaint(log), log
    code, log = moc(fault={"at": "while saving", "step": 6, "do": "no more files"})
    assert code == 1 and "too many open files" in complaint(log), log
    assert "raise the limit (ulimit -n), then the same command" in complaint(log), log
    code, log = moc()
    assert code == 0, log
    check_same(tmp_path, undisturbed)


@pytest.mark.parametrize(
    "place",
    [{"at": "before step", "phase": "facts", "step": 2}, {"at": "while evaluating", "boundary": 1}],
    ids=["in a phase", "at its boundary"],
)
def test_the_folder_is_deleted(
    moc: Moc, tmp_path: Path, undisturbed: dict[str, Any], place: dict[str, Any]
) -> None:
    """the study's folder deleted under a run. Kept: the run ends in one line and makes no half of a
    folder; the same command trains it anew, to the same weights."""
    folder = tmp_path / "runs/tiny"
    code, log = moc(fault={**place, "do": "remove", "folder": str(folder)})
    assert code == 1, log
    assert f"moc: {run_dir(tmp_path)} was removed, or taken over, while" in complaint(log), log
    assert not folder.exists()
    if place["at"] == "before step":
        code, log = moc()
        assert code == 0, log
        check_same(tmp_path, undisturbed)


@pytest.mark.usefixtures("finished")
def test_nobody_reads_what_is_printed(tmp_path: Path) -> None:
    """As of other Unix commands: no traceback, at a line or at the end."""
    study = write_tiny_study(tmp_path)
    plan = f"{sys.executable} -m moc plan {study}; echo code $? >&2"
    command = ["bash", "-c", f"({plan}) | head -c 1"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    found = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert found.stderr in ("code 141\n", "code 0\n")
    closed = subprocess.run(
        [sys.executable, "-m", "moc", "status", str(study)],
        cwd=ROOT,
        stdout=_closed_pipe(),
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert (closed.returncode, closed.stderr) == (141, "")


def _closed_pipe() -> int:
    reads, writes = os.pipe()
    os.close(reads)
    return writes
