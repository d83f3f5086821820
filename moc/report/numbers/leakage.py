"""What seeing later tokens is worth, and what stays of an advantage without it.

Every boundary's evals.json has bits per token of the same tokens under ``full`` routing (the whole
sequence, as trained), ``prefix`` routing (each position's own past) and ``counterfactual`` routing
(the past, and another text's future).
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from evals.statistics.estimates import Estimate, over_intervals, over_seeds, ratio_variance
from evals.statistics.inference import Interval
from moc.report.numbers.records import Boundary, Route, SourceLeakage, TaskLeakage
from moc.report.numbers.results import Results


@dataclass(frozen=True)
class Comparison:
    """Loss of one arm at one boundary on one source, and how far it is below the baseline's."""

    source: str
    boundary: str
    arm: str
    route: Route
    loss_by_seed: dict[int, float]  # bits per token
    advantage_by_seed: dict[int, float]  # baseline minus arm, of seeds with both on the same tokens
    loss: float | None  # over seeds
    advantage: Estimate | None  # over seeds, paired; positive: the arm is better


def of_source(results: Results, arm: str, boundary: str, source: str) -> dict[int, SourceLeakage]:
    """By seed."""
    found = {run.seed: run.at(boundary).source_leakage.get(source) for run in results.runs_of(arm)}
    return {seed: entry for seed, entry in found.items() if entry}


def of_task(results: Results, arm: str, boundary: str, task: str) -> dict[int, TaskLeakage]:
    """By seed."""
    found = {run.seed: run.at(boundary).task_leakage.get(task) for run in results.runs_of(arm)}
    return {seed: entry for seed, entry in found.items() if entry}


def sources(results: Results, arms: list[str]) -> list[str]:
    """Those that any of ``arms`` has a record of, in the order they first appear."""
    return _names(results, arms, lambda at: at.source_leakage)


def tasks(results: Results, arms: list[str]) -> list[str]:
    """Those that any of ``arms`` has a record of, in the order they first appear."""
    return _names(results, arms, lambda at: at.task_leakage)


def measured_arms(results: Results) -> list[str]:
    """Arms with any record of their loss under the routing they were trained with."""
    return [arm for arm in results.arms if sources(results, [arm])]


def non_causal_arms(results: Results) -> list[str]:
    return [arm for arm in results.arms if not results.is_causal(arm)]


def mean_loss(found: Mapping[int, SourceLeakage], route: Route) -> float | None:
    """Bits per token, over the seeds that have it."""
    return _mean(entry.loss[route] for entry in found.values() if route in entry.loss)


def mean_accuracy(
    found: Mapping[int, TaskLeakage], route: Literal["context", "full"]
) -> float | None:
    """Share of items, over the seeds that have it."""
    shares = (entry.context if route == "context" else entry.full for entry in found.values())
    return _mean(share for share in shares if share is not None)


def parts_of(found: Mapping[int, SourceLeakage]) -> list[Estimate | None]:
    """Leakage, the future's part and that of the mismatch, over the seeds that have them."""
    entries = found.values()
    parts = zip(*((entry.leakage, entry.future, entry.mismatch) for entry in entries), strict=True)
    estimates = [over_intervals([part for part in seeds if part]) for seeds in parts]
    return estimates or [None, None, None]


def accuracy_leakage(found: Mapping[int, TaskLeakage]) -> Estimate | None:
    """As a share of items, over the seeds that have it."""
    return over_intervals([entry.leakage for entry in found.values() if entry.leakage])


def by_position(found: Mapping[int, SourceLeakage]) -> list[tuple[int, int, Estimate]]:
    """First position, end and leakage of every stretch of the sequence, over seeds."""
    parts: dict[tuple[int, int], list[Interval]] = {}
    for entry in found.values():
        for stretch in entry.by_position:
            parts.setdefault((stretch.start, stretch.end), []).append(stretch.leakage)
    estimates = ((span, over_intervals(values)) for span, values in sorted(parts.items()))
    return [(*span, estimate) for span, estimate in estimates if estimate]


def comparisons(results: Results, baseline: str) -> list[Comparison]:
    """Every measured arm against ``baseline``; non-causal ones as trained and prefix-only."""
    arms = measured_arms(results)
    return [
        _compare(results, baseline, source, boundary, arm, route)
        for source in sources(results, arms)
        for boundary in results.boundaries
        for arm in arms
        for route in routes(results, arm)
    ]


def routes(results: Results, arm: str) -> list[Route]:
    """As trained; for a non-causal arm also on the prefix alone."""
    return ["full"] if results.is_causal(arm) else ["full", "prefix"]


def same_tokens(one: SourceLeakage, other: SourceLeakage) -> bool:
    return (one.num_tokens, one.tokens) == (other.num_tokens, other.tokens)


def _names(
    results: Results, arms: list[str], part_of: Callable[[Boundary], Iterable[str]]
) -> list[str]:
    runs = [run for arm in arms for run in results.runs_of(arm)]
    found = (name for run in runs for at in run.boundaries.values() for name in part_of(at))
    return list(dict.fromkeys(found))


def _mean(values: Iterable[float]) -> float | None:
    known = list(values)
    return statistics.fmean(known) if known else None


def _compare(
    results: Results, baseline: str, source: str, boundary: str, arm: str, route: Route
) -> Comparison:
    found = of_source(results, arm, boundary, source)
    other = of_source(results, baseline, boundary, source)
    losses = {seed: entry.loss[route] for seed, entry in found.items() if route in entry.loss}
    paired = [seed for seed in losses if seed in other and same_tokens(other[seed], found[seed])]
    advantage = {seed: other[seed].loss["full"] - losses[seed] for seed in paired}
    common = _common_variance([(other[seed], found[seed]) for seed in paired], route)
    estimate = over_seeds(list(advantage.values()), common_variance=common)
    return Comparison(
        source,
        boundary,
        arm,
        route,
        losses,
        advantage,
        _mean(losses.values()),
        estimate if arm != baseline else None,
    )


def _common_variance(pairs: list[tuple[SourceLeakage, SourceLeakage]], route: Route) -> float:
    """Of the mean difference, over the windows that all seeds are measured on."""
    windows = [(a.by_window, b.by_window) for a, b in pairs]
    known = [(a, b) for a, b in windows if a and b]
    if not pairs or len(known) < len(pairs):
        return 0.0
    differences = [
        [x - y for x, y in zip(a.bits["full"], b.bits[route], strict=True)] for a, b in known
    ]
    sums = [statistics.fmean(column) for column in zip(*differences, strict=True)]
    return ratio_variance(sums, known[0][0].num_tokens)
