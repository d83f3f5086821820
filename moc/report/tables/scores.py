"""The tables of scores. Cells are text, ready to be shown."""

from __future__ import annotations

from moc.report.numbers.effects import change
from moc.report.numbers.raw import all_scores
from moc.report.numbers.results import NEAR, NEAR_NOTE, Results
from moc.report.numbers.scores import Score
from moc.report.tables.cells import (
    MISSING,
    NEAR_ZERO_NOTE,
    items_text,
    level,
    marked,
    percent,
    shared_text,
    table_of,
)
from moc.report.tables.layout import Table
from moc.store.rundir import ON_ANSWER


def status(results: Results) -> Table:
    rows = [
        [results.label(arm), *(_status(results, arm, seed) for seed in results.seeds)]
        for arm in results.arms
    ]
    header = ["arm", *(f"seed {seed}" for seed in results.seeds)]
    return table_of(results, "status", "How far each arm and seed has got", header, rows)


def scores(results: Results) -> Table:
    """Score of every task and arm at every boundary, with its interval and baselines."""
    rows = []
    for task in results.tasks:
        for arm in results.arms:
            found = [results.score(arm, boundary, task) for boundary in results.boundaries]
            any_score = next((score for score in found if score), None)
            if any_score is None and task.endswith(ON_ANSWER):
                continue  # causal routing never sees the answer: nothing was to be measured
            baselines = [
                percent(any_score.chance if any_score else None),
                percent(any_score.majority if any_score else None),
            ]
            rows.append([task, results.label(arm), *(_score(score) for score in found), *baselines])
    header = ["task", "arm", *results.boundaries, "chance", "majority"]
    notes = [f"{NEAR_NOTE}."] if any(NEAR in cell for row in rows for cell in row) else []
    if any(task.endswith(ON_ANSWER) for task in results.tasks):
        notes.append(f"{ON_ANSWER}: the answer being scored took part in the routing.")
    caption = f"Score at each boundary, % of items correct {items_text(results)}"
    return table_of(
        results, "scores", caption, header, rows, num_keys=2, notes=notes, raw=all_scores(results)
    )


def r_matrices(results: Results) -> list[Table]:
    """R of every arm: boundaries by tasks."""
    tables = []
    for arm in results.arms:
        rows = [
            [boundary, *(_score(results.score(arm, boundary, task)) for task in results.tasks)]
            for boundary in results.boundaries
        ]
        if all(cell == MISSING for row in rows for cell in row[1:]):
            continue
        caption = f"R of {results.label(arm)}: score at each boundary, % {items_text(results)}"
        header = ["boundary", *results.tasks]
        notes = [f"{NEAR_NOTE}."] if any(NEAR in cell for row in rows for cell in row) else []
        tables.append(table_of(results, f"R-{arm}", caption, header, rows, notes=notes))
    return tables


def deltas(results: Results) -> list[Table]:
    """One table per transition: what every task's score was, is, and how it changed."""
    tables: list[Table] = []
    for before, after in results.transitions if results.tasks else []:
        rows = []
        for task in results.tasks:
            for arm in results.arms:
                ends = [results.score(arm, boundary, task) for boundary in (before, after)]
                if ends == [None, None] and task.endswith(ON_ANSWER):
                    continue
                changed = change(results, arm, task, before, after)
                levels = " → ".join(level(score) for score in ends)
                rows.append([task, results.label(arm), levels, marked(results, changed)])
        notes = []
        if any(NEAR in row[2] for row in rows):
            notes.append(
                f"{NEAR} before a score: not distinguishable from its baseline; where that is the "
                "first of the two, there was nothing to forget."
            )
        notes += [NEAR_ZERO_NOTE] * any(row[3].startswith(NEAR) for row in rows)
        caption = f"Change over {before} → {after}, on the same items {items_text(results)}"
        header = ["task", "arm", "before → after, %", "change, points"]
        name = f"delta-{before}-{after}"
        tables.append(table_of(results, name, caption, header, rows, num_keys=2, notes=notes))
    return tables


def _score(score: Score | None) -> str:
    if score is None:
        return MISSING
    return f"{level(score)} [{100 * score.low:.0f}, {100 * score.high:.0f}]"


def _status(results: Results, arm: str, seed: int) -> str:
    shared = shared_text(results, results.runs[arm, seed])
    return results.status(arm, seed) + (f"; {shared}" if shared else "")
