"""What every arm was tuned to, from what, and at which cost."""

from __future__ import annotations

import math

from moc.report.numbers.results import Results
from moc.report.numbers.tuning import tuning
from moc.report.tables.cells import MISSING, count, fixed, table_of
from moc.report.tables.layout import Table


def tuned(results: Results) -> Table | None:
    """One row an arm; none for a study that was not tuned."""
    found = tuning(results)
    if found is None:
        return None
    rows, edges = [], []
    any_pruned = any(arm.pruned for arm in found.arms)
    for arm in found.arms:
        known = [metric for metric in arm.metrics if math.isfinite(metric)]
        rows.append(
            [
                results.label(arm.arm),
                ", ".join(f"{axis} {value}" for axis, value in arm.chosen.items()) or MISSING,
                fixed(min(known), 4),
                fixed(max(known), 4),
                count(len(arm.metrics) - len(known)),
                *([count(len(arm.pruned))] if any_pruned else []),
                count(len(arm.metrics) + len(arm.pruned)),
                count(arm.tokens),
            ]
        )
        edges += [f"{arm.arm}: {axis} {arm.chosen[axis]}" for axis in arm.at_edge]
    header = ["arm", "chosen", "bits/byte", "worst that ended", "diverged"]
    header += [*(["pruned"] if any_pruned else []), "points", "tokens spent"]
    of_how_many = f" of {found.asked} trials ({found.sampler})" if found.asked else ""
    caption = (
        f"Tuning: the best point{of_how_many} of {', '.join(found.axes)} for every arm, by "
        f"{found.metric}; {found.budget:.0%} of each phase's tokens, seeds "
        f"{', '.join(map(str, found.seeds))}"
    )
    notes = []
    if any_pruned:
        notes.append(
            "Pruned: trials that ended early, not among the best of their arm until there; tokens "
            "are those that were trained. A point that was drawn again was not trained again."
        )
    if edges:
        notes.append(
            f"At the edge of what was tried, so that the best may lie beyond: {'; '.join(edges)}."
        )
    return table_of(results, "tuning", caption, header, rows, notes=notes)
