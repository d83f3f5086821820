"""Forgetting: how much of every task and source, which items, and what was kept or carried over."""

from __future__ import annotations

from evals.statistics.estimates import Estimate
from moc.report.numbers import effects
from moc.report.numbers.raw import Row, all_forgetting
from moc.report.numbers.results import NEAR, Results
from moc.report.tables.cells import (
    MISSING,
    NEAR_ZERO_NOTE,
    UNDEFINED,
    interval,
    items_text,
    level,
    marked,
    percent,
    plain,
    table_of,
)
from moc.report.tables.layout import Table

_BEST_OF_SEVERAL = (
    "The best of several scores is also the luckiest: forgetting is biased upward by its own noise "
    "(in simulations of 180 items, by 1.8 points with 3 boundaries and 2.6 with 4). Verdicts use "
    "the change since the task was taught instead, which has no such bias."
)


def forgetting(results: Results) -> Table:
    """Every task of every arm since it was taught: lost, transferred, kept; nothing with one phase.

    Forgetting and backward transfer as in arXiv 1801.10112 and 1706.08840.
    """
    last = results.boundaries[-1]
    rows = []
    for task in results.tasks if results.transitions else []:
        taught = results.taught_task(task)
        for arm in results.arms if taught is not None else []:
            ends = [results.score(arm, b, task) for b in (str(taught), last)]
            if ends == [None, None]:
                continue
            shown = ends if taught != last else ends[1:]
            rows.append(
                [
                    f"{task}, since {taught}",
                    results.label(arm),
                    " → ".join(level(end) for end in shown),
                    marked(results, effects.forgotten(results, arm, task)),
                    marked(results, effects.backward_transfer(results, arm, task)),
                    marked(results, effects.forward_transfer(results, arm, task)),
                    kept_text(effects.retention(results, arm, task)),
                ]
            )
    header = ["task", "arm", "taught → last, %", "forgetting", "backward transfer"]
    header += ["forward transfer", "retention, %"]
    caption = f"Forgetting, transfer and retention, in points {items_text(results)}"
    notes = [
        f"Forgetting: best earlier score minus the last; negative: better at {last} than at any "
        "boundary before. Backward transfer: last score minus the one after the phase that taught "
        "the task. Forward transfer: score right before that phase minus the one at the start; "
        f"{MISSING} for an arm whose earlier phases trained on it.",
        f"Retention: share of the score above its baseline (the larger of chance and majority) "
        f"that was left; {UNDEFINED} where the score when taught was not clearly above it. {NEAR} "
        "before a score: not distinguishable from that baseline; before a retention: its interval "
        "includes 0.",
        _BEST_OF_SEVERAL,
        NEAR_ZERO_NOTE,
    ]
    raw = all_forgetting(results) if results.transitions else []
    return table_of(results, "forgetting", caption, header, rows, num_keys=2, notes=notes, raw=raw)


def kept_text(kept: Estimate | None) -> str:
    """Retention in percent, marked when nothing may be left; 100 is not worth a mark."""
    if kept is None:
        return MISSING
    if kept.num_seeds == 0:
        return UNDEFINED
    value = f"{NEAR} " * kept.near_zero + plain(100 * kept.value, 1)
    return value + interval(kept, digits=1, scale=100)


def churn(results: Results) -> Table:
    """Items that changed sides over each transition: the same score may hide many."""
    rows: list[list[str]] = []
    raw: list[Row] = []
    for task in results.earlier_tasks:
        for before, after in _since_taught(results, task):
            for arm in results.arms:
                found = effects.churned(results, arm, task, before, after)
                if found is None:
                    continue
                parts = (found.right_to_wrong, found.wrong_to_right)
                cells = [
                    f"{percent(part.value)} [{percent(part.low)}, {percent(part.high)}]"
                    for part in parts
                ]
                changed = effects.change(results, arm, task, before, after)
                keys = [task, f"{before} → {after}", results.label(arm)]
                rows.append([*keys, *cells, marked(results, changed)])
                raw += [
                    {"task": task, "from": before, "to": after, "arm": arm, "seed": seed}
                    | {"right_to_wrong": lost, "wrong_to_right": gained, "mcnemar_p": p}
                    for seed, (lost, gained, p) in found.by_seed.items()
                ]
    header = ["task", "transition", "arm", "right → wrong, %", "wrong → right, %", "change, points"]
    caption = f"Churn: items that changed sides, % of all items {items_text(results)}"
    notes = [
        "The change is the second minus the first. The CSV file has counts and McNemar's exact "
        "test of every seed.",
        NEAR_ZERO_NOTE,
    ]
    return table_of(results, "churn", caption, header, rows, num_keys=3, notes=notes, raw=raw)


def _since_taught(results: Results, task: str) -> list[tuple[str, str]]:
    """The transitions after the boundary at which the task had been taught."""
    first = results.phases.index(str(results.taught_task(task)))
    return results.transitions[first:]
