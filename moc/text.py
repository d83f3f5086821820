"""Plain-text tables and human units, for terminals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def table(header: Sequence[str], rows: Mapping[str, Sequence[str]], width: int = 100) -> list[str]:
    """Lines of a table: names on the left, cells right-aligned. Long names are cut to fit."""
    cells = [max(map(len, column)) for column in zip(header[1:], *rows.values(), strict=True)]
    room = max(len(header[0]), width - sum(cells) - 2 * len(cells))
    names = [name if len(name) <= room else name[: room - 3] + "..." for name in (header[0], *rows)]
    first = max(map(len, names))
    lines = []
    for name, row in zip(names, (header[1:], *rows.values()), strict=True):
        columns = [cell.rjust(size) for cell, size in zip(row, cells, strict=True)]
        lines.append("  ".join([name.ljust(first), *columns]).rstrip())
    return lines


def human(value: float, unit: str = "") -> str:
    """Three digits and an SI prefix: ``human(1.5e9, "B")`` is ``1.50 GB``."""
    prefixes = ["", "k", "M", "G", "T", "P", "E", "Z"]
    while abs(value) >= 999.5 and len(prefixes) > 1:
        value /= 1000
        prefixes.pop(0)
    digits = 2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0
    return f"{value:.{digits}f} {prefixes[0]}{unit}".rstrip()
