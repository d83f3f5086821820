"""What is promised of faults: read from the docstrings of ``tests/faults``, shown in the README.

A test's docstring that says ``<fault>[; <fault>]. Kept: <what>`` is a row of the table.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
BEGIN, END = "<!-- promises: make promises -->\n", "<!-- end of promises -->\n"

FAULTS = (
    "kill -9 in the middle of a step",
    "kill -9 in every stage of saving",
    "kill -9 between phases",
    "a launched run killed",
    "its launcher killed",
    "Ctrl-C at a launcher without a terminal",
    "a SLURM job preempted by one of a higher partition",
    "Ctrl-C at a launcher of SLURM jobs",
    "a SLURM job whose time is up",
    "the process of a SLURM job killed",
    "a launcher of Ray tasks killed",
    "a Ray node killed",
    "torn shards",
    "TMPDIR elsewhere or missing",
    "SIGTERM once",
    "SIGTERM twice",
    "SIGTERM while saving",
    "SIGTERM on two ranks",
    "SIGTERM to the process group",
    "disk full",
    "permission denied",
    "a truncated checkpoint",
    "an empty checkpoint",
    "a bit-flipped checkpoint",
    "small damaged files",
    "NaN on one rank",
    "a loss spike",
    "a hung rank",
    "a dead rank",
    "out of memory",
    "bad rows",
    "data changed",
    "settings changed",
    "world size 2, then 1, then 2",
    "a loader's worker killed",
    "the tracking server down at the start",
    "the tracking server down in the middle",
    "the tracking server hung",
    "a locked database",
    "a kill while the database is made",
    "a journal's I/O error",
    "duplicate names",
    "two runs in one folder",
    "a stale lock",
    "a clock that jumps",
    "a run started while the last one still writes",
    "the study's folder deleted under a run",
    "malicious pickles",
    "_instantiator in a checkpoint",
    "remote code and !function",
    "YAML attacks",
    "malformed studies, overrides and data",
    "secrets in a study",
    "path traversal",
    "a package that is not the one that was locked",
)


class Promise(NamedTuple):
    faults: tuple[str, ...]
    kept: str
    test: str  # file::name


def promises(folder: Path = ROOT / "tests" / "faults") -> list[Promise]:
    """In the order of ``FAULTS``, then of files.

    Raises:
        ValueError: for a fault that is not among them.
    """
    found = [promise for file in sorted(folder.glob("test_*.py")) for promise in _of(file)]
    for fault in (fault for promise in found for fault in promise.faults):
        if fault not in FAULTS:
            raise ValueError(f"{fault!r} is none of tests.support.promises.FAULTS")
    return sorted(found, key=lambda promise: FAULTS.index(promise.faults[0]))


def table() -> str:
    """Markdown: a row for every fault, with what is kept and the tests that show it."""
    rows: dict[tuple[str, str], list[str]] = {}
    for promise in promises():
        for fault in promise.faults:
            rows.setdefault((fault, promise.kept), []).append(promise.test)
    lines = ["| fault | what is kept | test |", "| --- | --- | --- |"]
    for fault, kept in sorted(rows, key=lambda row: FAULTS.index(row[0])):
        tests = ", ".join(f"`{test}`" for test in rows[fault, kept])
        lines.append(f"| {fault} | {kept} | {tests} |")
    return "\n".join(lines) + "\n"


def with_table(page: str) -> str:
    """``page`` with the table between its marks made anew."""
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n{table()}\n{END}{rest.partition(END)[2]}"


@functools.cache
def _of(file: Path) -> tuple[Promise, ...]:
    return tuple(_read(file))


def _read(file: Path) -> Iterator[Promise]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            text = " ".join((ast.get_docstring(node) or "").split())
            if found := re.match(r"(.+?)\. Kept: (.+?)\.?$", text):
                faults = tuple(found[1].split("; "))
                yield Promise(faults, found[2], f"{file.name}::{node.name}")


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(with_table(readme.read_text()))
