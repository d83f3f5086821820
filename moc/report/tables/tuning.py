"""What every arm was tuned to, from what, and at which cost."""

from __future__ import annotations

import math

from moc.report.numbers.results import Results
from moc.report.numbers.tuning import tuning
from moc.report.tables.cells import count, fixed, percent, table_of
from moc.report.tables.layout import Table


def tuned(results: Results) -> Table | None:
    """One row an arm; none for a study that was not tuned."""
    found = tuning(results)
    if found is None:
        return None
    rows, edges = [], []
    for arm in found.arms:
        known = [metric for metric in arm.metrics if math.isfinite(metric)]
        rows.append(
            [
                results.label(arm.arm),
                ", ".join(f"{axis} {value}" for axis, value in arm.chosen.items()),
                fixed(min(known), 4),
                fixed(max(known), 4),
                count(len(arm.metrics) - len(known)),
                count(len(arm.metrics)),
                count(arm.tokens),
            ]
        )
        edges += [f"{arm.arm}: {axis} {arm.chosen[axis]}" for axis in arm.at_edge]
    header = ["arm", "chosen", "bits/byte", "worst that ended", "diverged", "points"]
    header += ["tokens spent"]
    caption = (
        f"Tuning: the best point of {', '.join(found.axes)} for every arm, by {found.metric}; "
        f"{percent(found.budget)} of each phase's tokens, seeds {', '.join(map(str, found.seeds))}"
    )
    notes = []
    if edges:
        notes.append(
            f"At the edge of what was tried, so that the best may lie beyond: {'; '.join(edges)}."
        )
    return table_of(results, "tuning", caption, header, rows, notes=notes)
