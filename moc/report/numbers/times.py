"""How long training and evaluating took, and how much memory, over seeds."""

from __future__ import annotations

import statistics
from collections.abc import Iterable

from moc.report.numbers.records import Run
from moc.report.numbers.results import Results


def training_sec(results: Results, arm: str, last: str | None = None) -> float | None:
    """Tokens of every phase, up to phase ``last`` (default: all), over its median speed; of the
    seeds that have trained all of them."""
    return _mean_above_zero(_training_sec(results, run, last) for run in results.runs_of(arm))


def evaluation_sec(results: Results, arm: str) -> float | None:
    """At boundaries, with controls, and in phases."""
    return _mean_above_zero(_evaluation_sec(results, run) for run in results.runs_of(arm))


def peak_bytes(results: Results, arm: str) -> float | None:
    """Of a device; None where it does not say."""
    return _mean_above_zero(run.peak_memory_bytes for run in results.runs_of(arm))


def _mean_above_zero(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value]
    return statistics.fmean(known) if known else None


def _training_sec(results: Results, run: Run, last: str | None) -> float | None:
    total = 0.0
    for phase in results.phases_of(run.arm):
        speeds = run.series(f"{phase.name}/train/tokens_per_sec")[1]
        if not speeds or phase.name not in run.boundaries:
            return None
        total += phase.trained_tokens / statistics.median(speeds)
        if phase.name == last:
            break
    return total


def _evaluation_sec(results: Results, run: Run) -> float:
    total = sum(at.elapsed_sec for at in run.boundaries.values())
    return total + sum(sum(run.series(f"{phase}/eval/elapsed_sec")[1]) for phase in results.phases)
