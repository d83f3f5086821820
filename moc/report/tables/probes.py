"""The table of what probes brought back."""

from __future__ import annotations

from evals.statistics.estimates import Estimate
from moc.report.numbers import probes as known
from moc.report.numbers.probes import Brought
from moc.report.numbers.raw import Row
from moc.report.numbers.results import NEAR, NEAR_NOTE, Results
from moc.report.tables.cells import (
    MISSING,
    UNDEFINED,
    count,
    interval,
    level,
    over_text,
    plain,
    table_of,
)
from moc.report.tables.layout import Table


def savings(results: Results) -> Table:
    """What every probe brought back, and how fast."""
    rows: list[list[str]] = []
    raw: list[Row] = []
    for probe, boundary in known.probed(results):
        for task in results.tasks:
            taught = results.taught_task(task)
            if taught not in results.phases[: results.phases.index(boundary)]:
                continue  # nothing has happened to it since
            for arm in results.arms:
                found = known.regained(results, arm, probe, boundary, task)
                if found:
                    keys = [f"{probe} after {boundary}", task, results.label(arm)]
                    brought = known.brought(results, arm, task, boundary, found)
                    rows.append([*keys, *_cells(brought, len(found))])
                raw += [
                    {"probe": probe, "boundary": boundary, "task": task, "arm": arm, "seed": seed}
                    | vars(entry)
                    for seed, entry in found.items()
                ]
    header = ["probe", "task", "arm", "taught, %", "before → after probe, %"]
    header += ["recovered, %", "tokens to regain", "savings, %"]
    caption = f"Forgotten, or out of reach? Training again on a copy{_over(results)}"
    notes = [
        "Recovered: share of the lost score that the probe brought back. Tokens to regain: until "
        "the score was first what it was when taught, on the probe's items. Savings: 1 minus these "
        "over the tokens that learning it first took, where that phase followed scores on the same "
        f"items, if every seed got there both times (Ebbinghaus). {UNDEFINED.capitalize()}: the "
        "score when taught was not clearly above its baseline, or not clearly lower by now.",
        "Relearning has a learning rate and schedule of its own, and a score that the first phase "
        "reached only late makes savings high by construction.",
        f"{NEAR_NOTE}.",
    ]
    return table_of(results, "savings", caption, header, rows, num_keys=3, notes=notes, raw=raw)


def _cells(brought: Brought, num_seeds: int) -> list[str]:
    taught = level(brought.taught)
    if brought.near and not taught.startswith(NEAR):
        taught = f"{NEAR} {taught}"  # on all items it reaches its baseline
    levels = [taught, f"{level(brought.start)} → {level(brought.end)}"]
    if brought.near:
        return [*levels, UNDEFINED, UNDEFINED, UNDEFINED]
    if brought.num_failed == 0:
        tokens = count(brought.tokens)
    else:  # the mean of those that got there would be of the fastest alone
        some = f" by {brought.num_failed} of {num_seeds} seeds"
        tokens = "not regained" + some * (brought.num_failed < num_seeds)
    recovered = _share(brought.recovered) if brought.forgot else UNDEFINED
    return [*levels, recovered, tokens, _share(brought.saved)]


def _over(results: Results) -> str:
    return " [95% t-interval over seeds]" * (len(results.seeds) > 1) + over_text(results)


def _share(estimate: Estimate | None) -> str:
    if estimate is None:
        return MISSING
    return plain(100 * estimate.value, 0) + interval(estimate, digits=0, scale=100)
