"""How far the loss on the data of earlier phases rose since. W windows of text."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Literal

import numpy as np

from evals.statistics.estimates import Estimate, over_windows
from evals.statistics.power import Variances, variances_of, variances_over_seeds
from moc.report.numbers import leakage
from moc.report.numbers.records import Route
from moc.report.numbers.results import Results

Unit = Literal["token", "byte"]


@dataclass(frozen=True)
class Rise:
    """Of one arm's loss on one source, from the boundary after it was taught to the last."""

    source: str
    unit: Unit
    taught: str  # boundary
    arm: str
    route: Route
    before: float | None  # bits per token or byte, over seeds
    after: float | None
    forgotten: Estimate | None
    more: Estimate | None  # than the iso-FLOP baseline forgot, paired by seed and window
    by_seed: dict[int, tuple[float, float | None]]  # forgotten, and more than the baseline
    variances: Variances | None  # of ``more``
    num_windows: int  # behind it; 1 where seeds alone were compared


def rises(results: Results) -> list[Rise]:
    """Of every source taught before the last phase and every arm that has its loss when taught;
    of non-causal arms also as routed on the prefix alone."""
    return [
        rise
        for source, unit in _earlier_sources(results)
        for arm in results.arms
        for route in leakage.routes(results, arm)
        if (rise := _rise(results, arm, source, unit, route))
    ]


Loss = dict[int, tuple[float, np.ndarray]]  # seed -> bits per token or byte, and by window (W,)


def _rise(results: Results, arm: str, source: str, unit: Unit, route: Route) -> Rise | None:
    taught, baseline = str(results.taught(source)), results.iso_flop_arm
    ends = [_loss(results, arm, b, source, unit, route) for b in (taught, results.phases[-1])]
    if not ends[0]:
        return None
    rise = _by_window(results, arm, source, unit, route)
    base = _by_window(results, baseline, source, unit, "full") if baseline else {}
    more = {s: rise[s] - base[s] for s in rise if s in base} if arm != baseline else {}
    before, after = (statistics.fmean(v for v, _ in end.values()) if end else None for end in ends)
    return Rise(
        source,
        unit,
        taught,
        arm,
        route,
        before,
        after,
        over_windows(list(rise.values())),
        over_windows(list(more.values())),
        {
            seed: (float(values.mean()), float(more[seed].mean()) if seed in more else None)
            for seed, values in rise.items()
        },
        *_variances(list(more.values())),
    )


def _variances(more_SW: list[np.ndarray]) -> tuple[Variances | None, int]:
    """And the number of windows; told apart as by ``over_windows``."""
    if len({len(more_W) for more_W in more_SW}) == 1 and len(more_SW[0]) > 1:
        num_windows = len(more_SW[0])
        return variances_of(np.stack(more_SW), np.arange(num_windows)), num_windows
    return variances_over_seeds([float(more_W.mean()) for more_W in more_SW]), 1


def _earlier_sources(results: Results) -> list[tuple[str, Unit]]:
    """What was taught before the last phase; in bits per token where these were measured."""
    by_token = leakage.sources(results, leakage.measured_arms(results))
    found: list[tuple[str, Unit]] = [(source, "token") for source in by_token]
    found += [(source, "byte") for source in results.sources if source not in by_token]
    return [pair for pair in found if results.taught(pair[0]) in results.phases[:-1]]


def _loss(results: Results, arm: str, boundary: str, source: str, unit: Unit, route: Route) -> Loss:
    if unit == "byte":
        values = {r.seed: r.at(boundary).bits_per_byte.get(source) for r in results.runs_of(arm)}
        return {seed: (v, np.array([v])) for seed, v in values.items() if v is not None}
    found: Loss = {}
    for seed, entry in leakage.of_source(results, arm, boundary, source).items():
        if route not in entry.loss:
            continue
        windows = np.array([entry.loss[route]])
        if entry.by_window:  # weighted so that their mean is the bits per token
            bits_W = np.array(entry.by_window.bits[route])
            windows = bits_W * len(bits_W) / sum(entry.by_window.num_tokens)
        found[seed] = (entry.loss[route], windows)
    return found


def _by_window(
    results: Results, arm: str, source: str, unit: Unit, route: Route
) -> dict[int, np.ndarray]:
    """Seed -> last loss minus the one when taught, by window."""
    boundaries = str(results.taught(source)), results.phases[-1]
    before, after = (_loss(results, arm, b, source, unit, route) for b in boundaries)
    return {
        seed: after[seed][1] - before[seed][1]
        for seed in after
        if seed in before and len(after[seed][1]) == len(before[seed][1])
    }
