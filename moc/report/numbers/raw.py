"""Rows of the CSV files: every number of a study, unrounded and per seed."""

from __future__ import annotations

import math

from evals.statistics.forgetting import forgetting, loss_forgetting
from evals.statistics.inference import Interval
from moc.report.numbers.records import Run
from moc.report.numbers.results import Results

Row = dict[str, object]


def all_scores(results: Results) -> list[Row]:
    return [
        {**_key(results, run, boundary), "task": task}
        | {"metric": score.metric, "value": score.value, "stderr": score.stderr}
        | {"num_items": score.num_items, "chance": score.chance, "majority": score.majority}
        for run in results.runs.values()
        for boundary, at in run.boundaries.items()
        for task, score in at.tasks.items()
    ]


def all_bits_per_byte(results: Results) -> list[Row]:
    return [
        {**_key(results, run, boundary), "source": source, "bits_per_byte": value}
        for run in results.runs.values()
        for boundary, at in run.boundaries.items()
        for source, value in at.bits_per_byte.items()
    ]


def all_forgetting(results: Results) -> list[Row]:
    """Forgetting of every evaluation at the last boundary, of the seeds that got there."""
    measured = (
        ("share", results.tasks, results.task_matrices, forgetting),
        ("bits_per_byte", results.sources, results.source_matrices, loss_forgetting),
    )
    return [
        {"arm": arm, "seed": run.seed, "causal": results.is_causal(arm)}
        | {"evaluation": name, "unit": unit, "forgetting": value}
        for arm in results.arms
        for unit, names, matrices, lost in measured
        for run, values in zip(results.runs_of(arm), matrices(arm), strict=True)
        for name, value in zip(names, lost(values).tolist(), strict=True)
        if math.isfinite(value)
    ]


def all_losses(results: Results) -> list[Row]:
    """Bits per token under each routing, of all arms; causal ones have one routing only."""
    return [
        {**_key(results, run, boundary), "source": source}
        | {"num_windows": entry.num_windows, "num_tokens": entry.num_tokens}
        | {route: entry.loss.get(route) for route in ("full", "prefix", "counterfactual")}
        | _parts(leakage=entry.leakage, future=entry.future, mismatch=entry.mismatch)
        for run in results.runs.values()
        for boundary, at in run.boundaries.items()
        for source, entry in at.source_leakage.items()
    ]


def all_choices(results: Results) -> list[Row]:
    """Accuracy routed on the context and on the answer."""
    return [
        {**_key(results, run, boundary), "task": task}
        | {"num_items": entry.num_items, "context": entry.context, "full": entry.full}
        | _parts(leakage=entry.leakage)
        for run in results.runs.values()
        for boundary, at in run.boundaries.items()
        for task, entry in at.task_leakage.items()
    ]


def _parts(**found: Interval | None) -> Row:
    """``leakage``, ``leakage_low``, ``leakage_high`` and so on; None where unmeasured."""
    return {
        f"{name}{suffix}": part and getattr(part, key)
        for name, part in found.items()
        for suffix, key in (("", "value"), ("_low", "low"), ("_high", "high"))
    }


def _key(results: Results, run: Run, boundary: str) -> Row:
    return {
        "arm": run.arm,
        "seed": run.seed,
        "causal": results.is_causal(run.arm),
        "boundary": boundary,
        "tokens": run.boundaries[boundary].tokens,
    }
