"""What the words after an option may be; argparse says what is wrong with them in one line."""

from __future__ import annotations

from argparse import ArgumentTypeError
from collections.abc import Callable
from typing import TypeVar

from moc.ranges import Range

Number = TypeVar("Number", int, float)

_SEEDS = Range(-(2**31), 2**32 - 1)  # as of a study


def words(text: str) -> list[str]:
    """Comma-separated."""
    return [word for word in text.split(",") if word]


def seeds(text: str) -> list[int]:
    """Comma-separated."""
    try:
        found = [int(word) for word in words(text)]
    except ValueError:
        raise ArgumentTypeError(f"{text[:50]!r} is no comma-separated integers") from None
    if outside := [number for number in found if number not in _SEEDS]:
        raise ArgumentTypeError(f"{str(outside[0])[:50]} is not {_SEEDS}")
    return found


def _number(kind: type[Number], limits: Range) -> Callable[[str], Number]:
    """Reads one number in ``limits``."""

    def read(text: str) -> Number:
        try:
            value = kind(text)
        except ValueError:
            raise ArgumentTypeError(f"{text[:50]!r} is no {kind.__name__}") from None
        if value not in limits:
            raise ArgumentTypeError(f"{text[:50]} is not {limits}")
        return value

    return read


count = _number(int, Range(1, 10**7))
seed = _number(int, _SEEDS)
port = _number(int, Range(1, 65_535))
temperature = _number(float, Range(0, 100))
share = _number(float, Range(0, 1, without="low"))
points = _number(float, Range(0, 100, without="low"))
