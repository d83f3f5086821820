"""Which arm forgets less, and what that rests on."""

from __future__ import annotations

import math

from evals.statistics.power import POWER
from moc.report.numbers.assay import NEITHER
from moc.report.numbers.raw import Row
from moc.report.numbers.results import Results
from moc.report.numbers.stored import known_sources
from moc.report.numbers.verdicts import (
    NOTHING,
    ONLY_ONE,
    Verdict,
    bases,
    outcomes,
    verdicts,
)
from moc.report.tables.cells import MISSING, items_text, marked, plain, probability, table_of
from moc.report.tables.layout import Table


def differences(results: Results) -> list[Table]:
    """One table per base: the changes of two arms side by side, their difference, the verdict."""
    return [_table(results, base) for base in bases(results)]


def seen_text(entry: Verdict) -> str:
    """`` (12.3 points would have been seen)``, of two arms not told apart; else empty."""
    if math.isnan(entry.detectable):
        return ""
    return f" ({entry.scale * entry.detectable:.1f} {entry.unit} would have been seen)"


def _name(entry: Verdict) -> str:
    return entry.task if entry.unit == "points" else f"{entry.task} ({entry.unit})"


def _table(results: Results, base: str) -> Table:
    name, last = results.label(base), results.boundaries[-1]
    found = [entry for entry in verdicts(results) if entry.base == base]
    order = [*results.tasks, *known_sources(results)]
    found.sort(key=lambda entry: order.index(entry.task))  # stable: arms keep their order
    rows = [
        [
            f"{_name(entry)}, since {entry.taught}",
            results.label(entry.arm),
            entry.words + seen_text(entry),
            marked(results, entry.difference, scale=entry.scale),
            probability(entry.adjusted_p),
            probability(entry.difference.p),
            *(marked(results, change, scale=entry.scale) for change in entry.changes),
            MISSING if entry.at_stake is None else plain(entry.scale * entry.at_stake.value, 1),
        ]
        for entry in found
    ]
    raw: list[Row] = [
        Row()
        | {"arm": entry.arm, "base": base, "task": entry.task, "from": entry.taught, "to": last}
        | {"unit": "share" if entry.unit == "points" else "bits"}
        | {"num_seeds": entry.difference.num_seeds, "difference": entry.difference.value}
        | {"low": entry.difference.low, "high": entry.difference.high}
        | {"p": entry.difference.p, "adjusted_p": entry.adjusted_p, "verdict": entry.words}
        | {"detectable": None if math.isnan(entry.detectable) else entry.detectable}
        for entry in found
    ]
    header = ["task", "arm", "verdict", "difference", "adjusted p", "p"]
    header += ["its change", f"change of {name}", "kbit at stake"]
    caption = (
        f"Difference-in-differences against {name}: change of the score until after {last}, in "
        f"points, or of the bits held {items_text(results)}: {outcomes(found)}"
    )
    notes = [
        "Positive difference: the arm lost less. Adjusted p: Holm's, over the tasks of a pair of "
        f"arms. {NOTHING.capitalize()}: neither arm had clearly learned the task. "
        f"{ONLY_ONE.capitalize()}: the other was at its baseline and had nothing to lose. "
        f"{MISSING}: not tested. {NEITHER.capitalize()}: the difference in brackets would have "
        f"been seen in {POWER:.0%} of such studies, by the variances of this one. At stake: bits "
        "that the arm held when it had been taught, which is all that it could lose.",
    ]
    return table_of(
        results,
        f"differences-{base}",
        caption,
        header,
        rows,
        num_keys=2,
        notes=notes,
        raw=raw,
    )
