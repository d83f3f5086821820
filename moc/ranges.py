"""What a number may be: stated beside the setting that it is of, and checked by one walk:
``lr: Annotated[float, Range(0, 10)] = 1e-3``.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Literal, get_type_hints


@dataclass(frozen=True)
class Range:
    """From ``low`` to ``high``, both included but for the end named in ``without``; NaN is in none.

    Of a list or a mapping it is the range of every number in it. Null is for the type to allow.
    """

    low: float
    high: float
    without: Literal["low", "high"] | None = None

    def __contains__(self, value: object) -> bool:
        if not isinstance(value, (int, float)):
            return False
        above = self.low < value if self.without == "low" else self.low <= value
        return above and (value < self.high if self.without == "high" else value <= self.high)

    def __str__(self) -> str:
        low, high = f"{self.low:_}", f"{self.high:_}"
        match self.without:
            case "low":
                return f"above {low} and at most {high}"
            case "high":
                return f"at least {low} and below {high}"
        return f"from {low} to {high}"


def check_ranges(config: Any, where: str = "") -> None:
    """
    Args:
        config: a dataclass, whose fields may be dataclasses, or lists or mappings of them.
        where: what it is called, to begin the names of its settings.

    Raises:
        ValueError: for a number that is not in the range that its field states.
    """
    for name, limits in ranges_of(config.__class__).items():
        for key, value in _each(getattr(config, name), f"{where}.{name}" if where else name):
            if is_dataclass(value):
                check_ranges(value, key)
            elif limits is not None and value is not None:
                _check(value, limits, key)


def check_numbers(value: Any, limits: Range, where: str) -> None:
    """
    Args:
        value: as it was read; what is neither a number nor holds numbers is left alone.

    Raises:
        ValueError: for a number that is not in ``limits``.
    """
    for key, one in _each(value, where):
        if isinstance(one, (int, float)) and not isinstance(one, bool):
            _check(one, limits, key)


@functools.cache
def ranges_of(schema: Any) -> dict[str, Range | None]:
    """The range that each field states; None if it states none."""
    hints = get_type_hints(schema, include_extras=True)
    found: dict[str, Range | None] = {}
    for field in fields(schema):
        stated = getattr(hints[field.name], "__metadata__", ())
        found[field.name] = next((one for one in stated if isinstance(one, Range)), None)
    return found


def _check(value: object, limits: Range, name: str) -> None:
    if value not in limits:
        raise ValueError(f"{name} must be {limits}, not {_in_short(value)}")


def _each(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, one in value.items():
            yield from _each(one, f"{name}.{key}")
    elif isinstance(value, list):
        for number, one in enumerate(value):
            yield from _each(one, f"{name}[{number}]")
    else:
        yield name, value


def _in_short(value: object) -> str:
    """A number of hundreds of digits would fill the terminal; Python writes none of 4,301."""
    if isinstance(value, int) and abs(value) > 10**20:
        return f"a number of {math.ceil(value.bit_length() * math.log10(2))} digits"
    return repr(value)
