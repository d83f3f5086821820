"""Rows of the CSV files: every number of a study, unrounded and per seed."""

from __future__ import annotations

import math
from typing import Any

from evals.statistics.forgetting import forgetting, loss_forgetting
from moc.report.results import Results
from moc.report.runs import Run

Row = dict[str, object]

_SCORE_KEYS = ("metric", "value", "stderr", "num_items", "chance", "majority")
_LOSS_KEYS = ("num_windows", "num_tokens", "full", "prefix", "borrowed")


def all_scores(results: Results) -> list[Row]:
    return [
        {**_key(results, run, boundary), "task": task}
        | {key: entry.get(key) for key in _SCORE_KEYS}
        for run in results.runs.values()
        for boundary, record in run.evals.items()
        for task, entry in record.get("tasks", {}).items()
    ]


def all_bits_per_byte(results: Results) -> list[Row]:
    return [
        {**_key(results, run, boundary), "source": source, "bits_per_byte": value}
        for run in results.runs.values()
        for boundary, record in run.evals.items()
        for source, value in record.get("bits_per_byte", {}).items()
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
        | {key: entry.get(key) for key in _LOSS_KEYS}
        | _parts(entry, "gain", "look_ahead", "mismatch")
        for run in results.runs.values()
        for boundary, record in run.evals.items()
        for source, entry in (record.get("leakage") or {}).get("sources", {}).items()
    ]


def all_choices(results: Results) -> list[Row]:
    """Accuracy routed on the context and on the answer."""
    return [
        {**_key(results, run, boundary), "task": task}
        | {key: entry.get(key) for key in ("num_items", "context", "full")}
        | _parts(entry, "gain")
        for run in results.runs.values()
        for boundary, record in run.evals.items()
        for task, entry in (record.get("leakage") or {}).get("tasks", {}).items()
    ]


def _parts(entry: dict[str, Any], *names: str) -> Row:
    """``gain``, ``gain_low``, ``gain_high`` and so on; None where it was not measured."""
    found = {name: entry.get(name) or {} for name in names}
    return {
        f"{name}{suffix}": part.get(key)
        for name, part in found.items()
        for suffix, key in (("", "value"), ("_low", "low"), ("_high", "high"))
    }


def _key(results: Results, run: Run, boundary: str) -> Row:
    return {
        "arm": run.arm,
        "seed": run.seed,
        "causal": results.is_causal(run.arm),
        "boundary": boundary,
        "tokens": run.evals[boundary].get("tokens"),
    }
