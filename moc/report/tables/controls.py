"""How much of a score lives in the bank: what each control changes."""

from __future__ import annotations

from moc.report.numbers.controls import (
    controlled_arms,
    controlled_boundaries,
    loss_change,
    score_under,
)
from moc.report.numbers.effects import control_names, controlled
from moc.report.numbers.raw import Row
from moc.report.numbers.results import NEAR, Results
from moc.report.tables.cells import (
    NEAR_ZERO_NOTE,
    fixed,
    items_text,
    level,
    marked,
    table_of,
)
from moc.report.tables.layout import Table

KINDS = "Knockout: rows of the bank zeroed. Bank swap: the bank of an earlier boundary."


def controls(results: Results) -> Table | None:
    """After the last boundary that has any: scores and losses as they are, and what each control
    changes."""
    reached = controlled_boundaries(results)
    return _at(results, reached[-1]) if reached else None


def earlier_controls(results: Results) -> list[Table]:
    """``controls`` of the boundaries before."""
    return [_at(results, boundary) for boundary in controlled_boundaries(results)[:-1]]


def _at(results: Results, boundary: str) -> Table:
    names = control_names(results, boundary)
    arms = controlled_arms(results, boundary)
    rows: list[list[str]] = []
    raw: list[Row] = []
    for task in results.tasks:
        for arm in arms:
            found = [controlled(results, arm, task, boundary, name) for name in names]
            if not any(found):
                continue
            as_it_is = level(score_under(results, arm, task, boundary, ""))
            cells = [marked(results, estimate) for estimate in found]
            rows.append([f"{task}, %", results.label(arm), as_it_is, *cells])
            for name, estimate in zip(names, found, strict=True):
                under = score_under(results, arm, task, boundary, name)
                if estimate and under:
                    raw.append(
                        Row()
                        | {"boundary": boundary, "task": task, "arm": arm, "control": name}
                        | {"num_seeds": estimate.num_seeds, "num_items": under.num_items}
                        | {"as_it_is": under.value - estimate.value, "under_control": under.value}
                        | {"difference": estimate.value, "low": estimate.low}
                        | {"high": estimate.high, "p": estimate.p}
                    )
    for source in results.sources if names else []:
        for arm in arms:
            bits = results.bits_per_byte(arm, boundary, source)
            changes = [loss_change(results, arm, boundary, source, name) for name in names]
            cells = [marked(results, change, digits=3, scale=1) for change in changes]
            rows.append([f"{source}, bits/byte", results.label(arm), fixed(bits, 3), *cells])
    header = ["score", "arm", "as it is", *names]
    caption = (
        f"Controls after {boundary}: what each changes on the same items, in points "
        f"{items_text(results)}"
    )
    notes = [
        f"{KINDS} {NEAR} before a score: not distinguishable from its baseline. Bits per byte: "
        "positive is worse; intervals are over seeds alone.",
        NEAR_ZERO_NOTE,
    ]
    name = f"controls-{boundary}"
    return table_of(results, name, caption, header, rows, num_keys=2, notes=notes, raw=raw)
