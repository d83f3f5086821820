"""The journal is what a study's results are read from: nothing lost, nothing twice."""

from __future__ import annotations

import errno
import io
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from moc.store.journal import Journal, read

PHASES = ["pretrain", "ift"]


def record(phase: str, step: int, **metrics: float) -> dict:
    return {"phase": phase, "step": step, "tokens": step * 10, "time": 1.0, "metrics": metrics}


def test_reads_back_what_was_appended_in_order(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "runs" / "metrics.jsonl")
    written = [record("pretrain", step, loss=step / 7) for step in range(20)]
    for entry in written:
        journal.append(entry)
    assert read(journal.path) == written
    assert len(journal.path.read_text().splitlines()) == 20


def test_a_missing_journal_is_empty_and_time_is_filled_in(tmp_path: Path) -> None:
    assert read(tmp_path / "none.jsonl") == []
    journal = Journal(tmp_path / "metrics.jsonl")
    journal.append({"phase": "pretrain", "step": 1})
    assert read(journal.path)[0]["time"] > 1.7e9


def test_numbers_json_does_not_know_survive_and_the_file_stays_strict_json(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "metrics.jsonl")
    journal.append(record("pretrain", 1, loss=math.nan, norm=math.inf, low=-math.inf, ok=1.5))
    text = journal.path.read_text()
    assert json.loads(text, parse_constant=pytest.fail)["metrics"]["loss"] == "nan"
    metrics = read(journal.path)[0]["metrics"]
    assert math.isnan(metrics["loss"])
    assert (metrics["norm"], metrics["low"], metrics["ok"]) == (math.inf, -math.inf, 1.5)


@pytest.mark.parametrize("torn", ['{"phase": "pretrain", "st', '{"phase":"ift","step":1}', "\0\0"])
def test_a_torn_last_line_is_ignored_and_repaired(tmp_path: Path, torn: str) -> None:
    journal = Journal(tmp_path / "metrics.jsonl")
    journal.append(record("pretrain", 1))
    journal.close()
    with journal.path.open("a") as file:
        file.write(torn)
    assert read(journal.path) == [record("pretrain", 1)]
    reopened = Journal(journal.path)
    reopened.append(record("pretrain", 2))
    assert read(journal.path) == [record("pretrain", 1), record("pretrain", 2)]


@pytest.mark.parametrize("damage", ["junk", "a flipped byte", "not an object", "too deep"])
def test_a_damaged_line_in_the_middle_is_named_and_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    journal = Journal(tmp_path / "metrics.jsonl")
    for step in (1, 2, 3):
        journal.append(record("pretrain", step, loss=5.25))
    journal.commit()
    journal.close()
    lines = journal.path.read_bytes().splitlines(keepends=True)
    flipped = lines[1].replace(b"5.25", b"7.25")  # still JSON, still a loss
    lines[1] = {
        "junk": b"\xff\0\x13\n",
        "a flipped byte": flipped,
        "not an object": b"[1]\n",
        "too deep": b"[" * 100_000 + b"\n",
    }[damage]
    journal.path.write_bytes(b"".join(lines))
    expected = [record("pretrain", step, loss=5.25) for step in (1, 3)]
    assert read(journal.path) == read(journal.path, committed=True) == expected
    assert f"{journal.path}: line 2 is damaged: left out" in caplog.text
    journal.truncate("pretrain", 3, phases=PHASES)  # a run goes on, and the line is gone
    caplog.clear()
    assert read(journal.path) == expected and not caplog.text


def test_lines_without_a_checksum_are_read(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"commit": true}\n')
    assert read(path, committed=True) == [{"step": 1}]


def test_only_what_was_committed_is_offered_for_shipping(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "metrics.jsonl")
    journal.append(record("pretrain", 1))
    assert read(journal.path, committed=True) == []
    journal.commit()
    journal.append(record("pretrain", 2))
    assert read(journal.path, committed=True) == [record("pretrain", 1)]
    assert read(journal.path) == [record("pretrain", 1), record("pretrain", 2)]


def test_resuming_drops_later_steps_and_later_phases_only(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "metrics.jsonl")
    entries = [
        record(phase, step) for phase in ("start", "pretrain", "ift") for step in (0, 5, 10, 15)
    ]
    for entry in entries:
        journal.append(entry)
    journal.truncate("ift", 10, phases=PHASES)
    assert read(journal.path) == entries[:-1]
    journal.truncate("pretrain", 5, phases=PHASES)
    assert read(journal.path) == entries[:6]
    assert read(journal.path, committed=True) == entries[:6]
    journal.append(record("pretrain", 6))
    assert read(journal.path) == [*entries[:6], record("pretrain", 6)]
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]
    with pytest.raises(ValueError, match="it has pretrain, ift"):
        journal.truncate("sft", 1, phases=PHASES)


def test_what_an_error_of_the_disk_tore_is_cut_by_the_next_record(tmp_path: Path) -> None:
    class HalfWritten(io.FileIO):
        def write(self, line: Any) -> int:
            super().write(bytes(line)[:20])
            raise OSError(errno.EIO, "the disk")

    journal = Journal(tmp_path / "metrics.jsonl")
    journal._file = HalfWritten(journal.path, "a")
    with pytest.raises(OSError, match="the disk"):
        journal.append(record("pretrain", 0))
    journal.append(record("pretrain", 1))
    assert read(journal.path) == [record("pretrain", 1)]


def test_a_kill_in_the_middle_loses_no_complete_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    script = (
        "import sys; from pathlib import Path; from moc.store.journal import Journal\n"
        "journal = Journal(Path(sys.argv[1]))\n"
        "for step in range(10**9):\n"
        "    journal.append({'phase': 'pretrain', 'step': step, 'metrics': {'loss': step / 3}})\n"
        "    if step == 300: print('go', flush=True)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE, env=environment
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.wait()
    Journal(path)  # repairs
    steps = [entry["step"] for entry in read(path)]
    assert steps == list(range(len(steps)))
    assert len(steps) > 300
