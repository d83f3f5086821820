"""Forgetting: how much, and how much more than the iso-FLOP baseline forgets."""

from __future__ import annotations

import math

from evals.forgetting import forgetting as lost
from moc.report import looking_ahead as ahead
from moc.report.cells import MISSING, NEAR_ZERO, estimated, over_text, table_of
from moc.report.estimates import over_seeds
from moc.report.layout import Table
from moc.report.looking_ahead import Routing
from moc.report.raw import Row
from moc.report.results import Results

Lost = dict[int, float]  # by seed


def forgetting_paired(results: Results) -> Table:
    """What each arm forgot by the end of the last phase, and the difference to the baseline's,
    paired by seed; losses of non-causal arms also as routed without looking ahead."""
    baseline = ahead.iso_flop_arm(results)
    rows: list[list[str]] = []
    raw: list[Row] = []

    def add(name: str, unit: str, arm: str, routing: str, found: Lost, others: Lost) -> None:
        digits, scale = (1, 100) if unit == "points" else (3, 1)
        more = {seed: value - others[seed] for seed, value in found.items() if seed in others}
        cells = [
            estimated(results, over_seeds(list(values.values())), digits=digits, scale=scale)
            for values in (found, more)
        ]
        if arm == baseline:
            cells[1] = "baseline"
        rows.append([f"{name}, {unit}", results.label(arm), routing, *cells])
        raw.extend(
            {"arm": arm, "seed": seed, "causal": results.is_causal(arm), "evaluation": name}
            | {"unit": unit, "routing": routing, "forgotten": value, "more": more.get(seed)}
            for seed, value in found.items()
        )

    if baseline and results.transitions:
        for task in results.tasks:
            others = _of_task(results, baseline, task)
            for arm in results.arms:
                if found := _of_task(results, arm, task):
                    add(task, "points", arm, results.routing(arm), found, others)
        arms = ahead.measured_arms(results)
        for source in ahead.names(results, "sources", arms):
            others = _of_source(results, baseline, source, "full")
            for arm in arms:
                for routing in ahead.routings(results, arm):
                    if found := _of_source(results, arm, source, routing):
                        text = "prefix only" if routing == "prefix" else results.routing(arm)
                        add(source, "bits/token", arm, text, found, others)
    header = ["evaluation", "arm", "routing", "forgotten"]
    header += [f"more than {results.label(baseline)}" if baseline else MISSING]
    interval = " [95% t-interval over seeds]" if len(results.seeds) > 1 else ""
    caption = f"Forgetting against the iso-FLOP baseline, paired by seed{interval}"
    notes = [
        "Tasks: best earlier score minus the last. Bits per token: the last loss minus that after "
        "the last phase that trains on the source. Intervals are over seeds alone, all measured on "
        f"the same items, and not corrected for the number of rows. {NEAR_ZERO.capitalize()}: the "
        "interval includes 0.",
    ]
    caption += over_text(results)
    name = "forgetting_paired"
    return table_of(results, name, caption, header, rows, num_keys=2, notes=notes, raw=raw)


def _of_task(results: Results, arm: str, task: str) -> Lost:
    column = results.tasks.index(task)
    seeds = [run.seed for run in results.runs_of(arm)]
    values = [float(lost(matrix)[column]) for matrix in results.task_matrices(arm)]
    return {s: value for s, value in zip(seeds, values, strict=True) if math.isfinite(value)}


def _of_source(results: Results, arm: str, source: str, routing: Routing) -> Lost:
    """Empty for a source that the last phase still trains on."""
    taught, last = ahead.taught_by(results, source), results.phases[-1]
    if taught is None or taught == last:
        return {}
    before, after = (
        ahead.entries(results, arm, boundary, "sources", source) for boundary in (taught, last)
    )
    return {
        seed: entry[routing] - before[seed][routing]
        for seed, entry in after.items()
        if seed in before and routing in entry and routing in before[seed]
    }
