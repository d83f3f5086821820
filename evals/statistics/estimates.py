"""A mean over seeds and how sure it is, from one value (or one interval) per seed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtr, stdtrit

from evals.statistics.inference import Effect, Interval, hierarchical_interval
from evals.statistics.intervals import Z


@dataclass(frozen=True)
class Estimate:
    """A mean over ``num_seeds``, with its 95% interval if there is one."""

    value: float
    num_seeds: int
    low: float = math.nan  # NaN: nothing says how far off the value may be
    high: float = math.nan
    p: float = math.nan  # two-sided, of 0

    @property
    def has_interval(self) -> bool:
        return math.isfinite(self.low) and math.isfinite(self.high)

    @property
    def near_zero(self) -> bool:
        """Whether the interval includes 0."""
        return self.low <= 0 <= self.high


def over_seeds(values: Sequence[float], *, common_variance: float = 0.0) -> Estimate | None:
    """Mean of one value per seed with Student's t interval, which two seeds or more allow.

    Args:
        values: those that are not finite are left out; None if there are no others.
        common_variance: of the error that all seeds share, because they are measured on the same
            tokens or items, of which there are many; added to that of the mean over seeds. The
            degrees of freedom are then Satterthwaite's, who lets the larger part decide.
    """
    known = [value for value in values if math.isfinite(value)]
    if not known:
        return None
    mean = statistics.fmean(known)
    own_variance = statistics.variance(known) / len(known) if len(known) > 1 else 0.0
    variance = own_variance + common_variance
    if len(known) == 1 or not variance:  # seeds that agree to the last digit say nothing of others
        return Estimate(mean, len(known))
    own_share = max(own_variance / variance, 1e-3)
    degrees = (len(known) - 1) / own_share**2
    error = math.sqrt(variance)
    half = float(stdtrit(degrees, 0.975)) * error
    p = 2 * float(stdtr(degrees, -abs(mean) / error))
    return Estimate(mean, len(known), mean - half, mean + half, p)


def over_intervals(intervals: Sequence[Interval]) -> Estimate | None:
    """``over_seeds`` of the values, one per seed, whose own intervals, over the windows or items
    that all seeds share, add their variance; a single one keeps its interval."""
    known = [interval for interval in intervals if math.isfinite(interval.value)]
    if len(known) == 1:
        return Estimate(known[0].value, 1, known[0].low, known[0].high)
    variances = [((interval.high - interval.low) / (2 * Z)) ** 2 for interval in known]
    common = statistics.fmean(variances) if variances else 0.0
    return over_seeds([interval.value for interval in known], common_variance=common)


def over_windows(values_SW: Sequence[np.ndarray]) -> Estimate | None:
    """Over seeds and the windows (W,) that all of them have; over seeds alone where a seed has a
    single value, or where their windows are not the same ones, by their number."""
    if len({len(values_W) for values_W in values_SW}) == 1 and len(values_SW[0]) > 1:
        windows = np.arange(len(values_SW[0]))
        return estimate_of(hierarchical_interval(np.stack(values_SW), windows), len(values_SW))
    return over_seeds([float(values_W.mean()) for values_W in values_SW])


def estimate_of(effect: Effect, num_seeds: int) -> Estimate:
    """``effect`` and the number of seeds behind it."""
    value, low, high, p = (float(number) for number in effect)
    return Estimate(value, num_seeds, low, high, p)


def ratio_variance(sums: Sequence[float], counts: Sequence[float]) -> float:
    """Variance of ``sum(sums) / sum(counts)`` over clusters that were drawn at random, to first
    order; 0 for a single cluster."""
    num_clusters, total = len(counts), sum(counts)
    if num_clusters < 2 or not total:
        return 0.0
    mean = sum(sums) / total
    squares = sum((part - mean * count) ** 2 for part, count in zip(sums, counts, strict=True))
    return num_clusters / (num_clusters - 1) * squares / total**2


def mean_of_known(values: Iterable[float | None]) -> float | None:
    """Mean of those that are finite; None if there are none."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    return statistics.fmean(known) if known else None


def mean_over_seeds(values: np.ndarray) -> np.ndarray:
    """Mean over the first axis of what was measured; NaN where nothing was."""
    known = np.isfinite(values)
    total = np.where(known, values, 0.0).sum(axis=0)
    return np.divide(
        total, known.sum(axis=0), out=np.full(total.shape, np.nan), where=known.any(axis=0)
    )
