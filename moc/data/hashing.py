"""Randomness as a pure function of a key: the same on every machine, process and Python version."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def stable_hash(*key: object) -> int:
    """A 64-bit integer that depends on ``key`` alone."""
    return _digest(key) & (2**64 - 1)


class Draws:
    """An endless stream of uniform choices that depends on ``key`` alone.

    The bits of one hash are spent as the digits of a mixed-radix number, which is several times
    faster than seeding a generator for every document.
    """

    def __init__(self, *key: object) -> None:
        self._key = key
        self._refills = 0
        self._state = _digest(key)

    def below(self, count: int) -> int:
        """A uniform integer in [0, count)."""
        if self._state < 2**64:
            self._refills += 1
            self._state = _digest((*self._key, "refill", self._refills))
        self._state, value = divmod(self._state, count)
        return value

    def choice(self, items: Sequence[T]) -> T:
        return items[self.below(len(items))]

    def sample(self, items: Sequence[T], count: int) -> list[T]:
        """``count`` different positions of ``items``, in random order."""
        rest = list(items)
        return [rest.pop(self.below(len(rest))) for _ in range(count)]


def _digest(key: tuple[object, ...]) -> int:
    return int.from_bytes(hashlib.blake2b(repr(key).encode()).digest(), "little")
