"""The journal of a run: one JSON object a line, appended while it trains. No heavy imports.

The file is the truth and everything else (MLflow, the report) is derived from it. A line
``{"commit": true}`` says that the lines above it belong to a state which can be resumed, so they
will never be written a second time; training commits right *after* a checkpoint or a boundary is
in place. ``read(path, committed=True)`` stops at the last such line, which is how the tracker ships
nothing that a killed run would log again. Resuming calls ``truncate`` with the checkpoint's phase
and step: what came after it is dropped and re-logged by the resumed run.

A line ends with a checksum of what stands before it. A damaged one cannot be had again: it is left
out, and said, and the others stay.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import time
import zlib
from collections.abc import Sequence
from io import FileIO
from pathlib import Path
from typing import Any

from moc.store.files import write_bytes

Record = dict[str, Any]

log = logging.getLogger(__name__)

COMMIT: Record = {"commit": True}
_CRC = "crc"
_SEAL = re.compile(rb',"crc":"(?P<crc>[^"]*)"}\Z')
_NON_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


class Journal:
    """Appends records to ``path``; a last line torn by a kill is removed before the first write."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._file: FileIO | None = None

    def append(self, record: Record) -> None:
        """Write one record and flush it to the operating system. ``time`` (Unix seconds) is added
        where it is missing; NaN and infinite numbers become the strings ``nan``, ``inf``, ``-inf``.
        """
        self._write({"time": time.time(), **record})

    def commit(self) -> None:
        """Mark everything so far as final and wait until it is on disk."""
        self._write(COMMIT)
        assert self._file is not None
        os.fsync(self._file.fileno())

    def truncate(self, phase: str, step: int, *, phases: Sequence[str]) -> None:
        """Go back to ``step`` of ``phase``: drop what was recorded after it in that phase and in
        all later ones (``phases`` gives their order), then commit the rest. Records of a name that
        is not among ``phases`` stay. The file is replaced in one rename.

        Raises:
            ValueError: if ``phase`` is not among ``phases``.
        """
        if phase not in phases:
            raise ValueError(f"{phase!r} is not a phase of this study; it has {', '.join(phases)}")
        later = set(phases[list(phases).index(phase) + 1 :])
        kept = [
            record
            for record in read(self.path)
            if record.get("phase") not in later
            and not (record.get("phase") == phase and record.get("step", 0) > step)
        ]
        self.close()
        write_bytes(self.path, b"".join(_line(record) for record in [*kept, COMMIT]), sync=True)

    def close(self) -> None:
        """Release the file; a later ``append`` opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self, record: Record) -> None:
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            _cut_torn_line(self.path)
            self._file = self.path.open("ab", buffering=0)
        line = _line(record)
        try:
            while line:  # a nearly full disk takes a part
                line = line[self._file.write(line) :]
        except OSError:
            self.close()  # whoever goes on cuts what was written of the line
            raise


def read(path: Path, *, committed: bool = False) -> list[Record]:
    """The records of a journal, oldest first, without the commit lines; empty if there is no file.

    A last line without its newline is ignored: it is being written, or was torn by a kill. Damaged
    lines are left out, which the log says. ``committed`` leaves out what came after the last
    commit.
    """
    records, damaged = read_what_is_whole(path, committed=committed)
    if damaged:
        log.warning("%s", damaged)
    return records


def read_what_is_whole(path: Path, *, committed: bool = False) -> tuple[list[Record], str]:
    """``read``, and in one line what was left out because it is damaged; "" if nothing was."""
    path = Path(path)
    if not path.is_file():
        return [], ""
    records: list[Record] = []
    damaged: list[int] = []
    num_committed = 0
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        record = _record(line)
        if record is None:
            damaged.append(number)
        elif record == COMMIT:
            num_committed = len(records)
        else:
            records.append(record)
    message = ""
    if damaged:
        which = f"line {damaged[0]} is" if len(damaged) == 1 else f"{len(damaged)} lines are"
        first = f", the first is line {damaged[0]}" if len(damaged) > 1 else ""
        message = f"{path}: {which} damaged{first}: left out; the others are whole"
    return records[:num_committed] if committed else records, message


def read_end(path: Path, num_bytes: int = 1 << 16) -> list[Record]:
    """The records in the last ``num_bytes`` of a journal, which may be large: what is damaged, or
    begins before them, is left out."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - num_bytes))
            lines = file.read().split(b"\n")[:-1]
    except FileNotFoundError:
        return []
    found = [_record(line) for line in lines[size > num_bytes :]]
    return [record for record in found if record is not None and record != COMMIT]


def _line(record: Record) -> bytes:
    text = json.dumps(_plain(record), allow_nan=False, separators=(",", ":")).encode()
    return text[:-1] + b',"%s":"%s"}\n' % (_CRC.encode(), _crc(text))


def _record(line: bytes) -> Record | None:
    """What ``_line`` wrote; None if it is damaged. One without a checksum is read, too."""
    try:
        record = json.loads(line, object_hook=_revive)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict):
        return None
    if found := _SEAL.search(line):
        if found["crc"] != _crc(line[: found.start()] + b"}"):
            return None
        del record[_CRC]
    return record


def _crc(text: bytes) -> bytes:
    return b"%08x" % zlib.crc32(text)


def _plain(value: Any) -> Any:
    """``value`` with every number that JSON does not know replaced by its name."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _revive(mapping: Record) -> Record:
    return {
        key: _NON_FINITE.get(value, value) if isinstance(value, str) and key != "phase" else value
        for key, value in mapping.items()
    }


def _cut_torn_line(path: Path) -> None:
    if not path.is_file():
        return
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with path.open("r+b") as file:
            file.truncate(whole)
            os.fsync(file.fileno())
