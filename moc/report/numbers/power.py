"""How far differences between arms vary, for whoever plans the next study."""

from __future__ import annotations

from evals.statistics.power import Variances, mean_variances
from moc.plan.power import (
    BITS_PER_BYTE,
    BITS_PER_TOKEN,
    KILOBITS,
    POINTS,
    Basis,
    Counted,
    Unit,
)
from moc.report.numbers.losses import rises
from moc.report.numbers.results import Results
from moc.report.numbers.verdicts import NOTHING, ONLY_ONE, verdicts

Found = list[tuple[Variances, int]]  # and the number of items or windows behind it


def bases_of(results: Results) -> list[Basis]:
    """One for every task and source of which several seeds of two arms tell how far what they
    forget differs: the mean over the pairs of arms. Tasks that an arm had not learned are left
    out, for what stays at its floor does not vary."""
    by_task: dict[str, Found] = {}
    by_known: dict[str, Found] = {}
    for entry in verdicts(results):
        if entry.basis.variances and entry.words not in (NOTHING, ONLY_ONE):
            found = (by_task if entry.unit == "points" else by_known).setdefault(entry.task, [])
            found.append((entry.basis.variances, entry.basis.num_items))
    by_source: dict[tuple[str, Unit], Found] = {}
    units = {"token": BITS_PER_TOKEN, "byte": BITS_PER_BYTE}
    for rise in rises(results):
        if rise.variances:
            found = by_source.setdefault((rise.source, units[rise.unit]), [])
            found.append((rise.variances, rise.num_windows))
    tasks = [_basis(task, POINTS, "items", found) for task, found in by_task.items()]
    sources = [
        _basis(f"loss on {source}", unit, "windows", found)
        for (source, unit), found in by_source.items()
    ]
    known = [
        _basis(f"bits held of {source}", KILOBITS, "records", found)
        for source, found in by_known.items()
    ]
    return [*tasks, *known, *sources]


def _basis(name: str, unit: Unit, counted: Counted, found: Found) -> Basis:
    """Of those with as many items or windows as the one with the most."""
    number = max(number for _, number in found)
    variances = [one for one, other in found if other == number]
    return Basis(name, unit, counted if number > 1 else "seeds", mean_variances(variances), number)
