"""``python -m moc.bench growth``: training steps over the size of the bank."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import Any

from moc.bench.arms import arms, choice_words, sized, workload
from moc.bench.contenders import (
    Training,
    interleaved,
    iso_flop,
    peak_bytes,
    seconds_of,
    shown_as,
)
from moc.model.memory.build import build_memory
from moc.text import human, table

_SCOPE = {"chapters": ("sequence",), "product_keys": ("token",)}


def growth_verb(arguments: argparse.Namespace) -> tuple[list[str], dict[str, Any]]:
    """Training steps over the number of rows, with as many read, by both optimizers of the bank."""
    work = workload(arguments)
    sizes = {
        "chapters": arguments.chapters or [129, 1025, 4097, 16385],
        "product_keys": arguments.keys or [64, 128, 256, 512],
    }
    of_kind = arms(arguments, _SCOPE)
    configs = {
        (kind, scope, size, optimizer): sized(config, size)
        for (kind, scope), config in of_kind.items()
        for size in sizes[kind]
        for optimizer in arguments.optimizers
    }
    (kind, _), config = next(iter(of_kind.items()))
    contenders: dict[str, Callable[[], None]] = {
        str(key): Training(config, work, key[-1]) for key, config in configs.items()
    }
    contenders["iso_flop"] = Training(
        iso_flop(sized(config, max(sizes[kind])), work), work, "dense"
    )
    times = interleaved(contenders, arguments.repetitions, work.device)
    contenders.clear()
    iso = times["iso_flop"].median
    peaks = peak_bytes([(config, key[-1]) for key, config in configs.items()], work)
    rows, shown = [], {}
    for (key, config), peak in zip(configs.items(), peaks, strict=True):
        kind, scope, _, optimizer = key
        found = times[str(key)]
        first = times[str((kind, scope, sizes[kind][0], optimizer))]
        bank = build_memory(config)
        row = {
            "arm": kind,
            "scope": scope,
            "rows": bank.num_rows,
            "optimizer": optimizer,
            **seconds_of("step_sec", found),
            "peak_bytes": peak,
        }
        rows.append(row)
        shown[f"{kind} {scope}, {bank.num_rows:,} {optimizer}"] = [
            *shown_as(found),
            f"{found.median / iso:.2f}",
            f"{found.median / first.median:.2f}",
            human(row["peak_bytes"], "B"),
            human(4 * bank.num_rows * math.prod(bank.row_shape), "B"),
        ]
    shown["iso_flop"] = [*shown_as(times["iso_flop"]), "1.00", "", "", ""]
    header = ["arm, rows", "step, ms", "spread", "/ iso-FLOP", "/ first", "peak", "bank"]
    lines = [*table(header, shown), "", *choice_words(arguments)]
    return lines, {"rows": rows, "iso_flop_step_sec": iso}
