"""Breaks the code that keeps runs safe, one piece at a time, and sees whether a test notices."""

from __future__ import annotations

from typing import NamedTuple


class Mutant(NamedTuple):
    what: str  # what is broken, in a few words
    file: str
    old: str  # once in the file
    new: str
    tests: tuple[str, ...]  # node ids: at least one of them must fail
