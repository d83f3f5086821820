"""What a study can see: the power of the test in ``evals.statistics.inference``. No torch.

A difference between two arms, paired by seed and item, is taken for

    difference[seed, item] = effect + seed's part + item's part + rest, all of them normal,

so that its mean over S seeds and N items has the variance f + g,

    f = seeds / S + rest / (S N), which the spread of the seeds' means tells (with S - 1 degrees of
        freedom, a chi-square), and g = items / N, which all seeds share.

``hierarchical_interval`` finds the effect where that mean is farther from 0 than the quantile of
its draws, sqrt(f) x (t of S - 1 mixed with t of S + 1) + sqrt(g) x normal, f and g as estimated.
The mean is independent of both estimates, so that the power is the mean, over what they may turn
out to be, of a normal's two tails. Against simulations of that very test it is right within 3
points (tests/unit/evals/statistics/test_power.py). It is too high for counts of which hardly any is
not 0: where no more than ``inference.FEW`` changed, the test is more cautious than this knows.

Units are those of the difference: shares of items, bits, nats.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any

import numpy as np
from scipy.optimize import brentq
from scipy.special import chdtri, ndtr, ndtri, stdtrit

from evals.statistics.inference import LEVEL, MIN_SEEDS, cluster_cells, complete_table
from evals.statistics.intervals import Z
from evals.statistics.resampling import mean_squares, shared_variance

POWER = 0.8  # Cohen's convention (1988): of five real differences of that size, four are seen
MOST_SEEDS = 1000  # nobody trains more

_ANGLE = np.linspace(0, math.pi / 2, 25)  # of the seeds' share in the variance, its sine squared
_NUM_PLACES = 1000  # of a distribution's grid of equal probabilities


@dataclass(frozen=True)
class Variances:
    """Of a paired difference between two arms, in the square of its unit."""

    seeds: float  # of the means of seeds, on endless items
    items: float  # of one item's mean over endless seeds; of clustered ones, N times the mean's
    rest: float  # of one item by one seed, beyond those two; of clustered ones likewise
    items_per_cluster: float = 1.0


def variances_of(values_SN: np.ndarray, cluster_N: Sequence[Any] | np.ndarray) -> Variances | None:
    """Estimates from a table of differences, by a two-way analysis of variance.

    None with fewer than two seeds or clusters, or where all differences are the same.

    Args:
        values_SN, cluster_N: as of ``hierarchical_interval``.
    """
    values_SN, cluster_N = complete_table(values_SN, cluster_N)
    num_seeds, num_items = values_SN.shape
    num_clusters = len(np.unique(cluster_N))
    if num_seeds < 2 or num_clusters < 2 or not np.ptp(values_SN):
        return None
    from_seeds, from_items, interaction = mean_squares(cluster_cells(values_SN, cluster_N))
    return Variances(
        seeds=max(from_seeds - interaction, 0.0) * num_seeds,
        items=max(from_items - interaction, 0.0) * num_items,
        rest=interaction * num_seeds * num_items,
        items_per_cluster=num_items / num_clusters,
    )


def variances_over_seeds(values: Sequence[float]) -> Variances | None:
    """Of differences of which each seed has a single one, to be planned with one item; None of
    fewer than two, or where all are the same."""
    if len(values) < 2 or max(values) == min(values):
        return None
    return Variances(statistics.variance(values), 0.0, 0.0)


def mean_variances(found: Sequence[Variances]) -> Variances:
    """What is typical of several comparisons: the mean of each."""
    names = [field.name for field in fields(Variances)]
    return Variances(**{n: statistics.fmean(getattr(one, n) for one in found) for n in names})


def power_of(
    effect: float, variances: Variances, num_seeds: int, num_items: float, *, level: float = LEVEL
) -> float:
    """Probability that a study finds a difference of ``effect``, to whichever side.

    Args:
        num_items: ``math.inf`` for as many as one likes.
        level: of the two-sided test.

    Returns:
        0 with fewer than ``MIN_SEEDS`` seeds, which support no claim; NaN without any variance.
    """
    if num_seeds < MIN_SEEDS:
        return 0.0
    error, reach = _error_and_reach(variances, num_seeds, num_items, level)
    return _power(effect, error, reach)


def smallest_detectable(
    variances: Variances,
    num_seeds: int,
    num_items: float,
    *,
    power: float = POWER,
    level: float = LEVEL,
) -> float:
    """The difference that a study finds with probability ``power``; smaller ones it finds less
    often. Arguments as of ``power_of``.

    Returns:
        Infinity with fewer than ``MIN_SEEDS`` seeds; NaN without any variance.
    """
    if num_seeds < MIN_SEEDS:
        return math.inf
    error, reach = _error_and_reach(variances, num_seeds, num_items, level)
    if not error > 0:
        return math.nan
    most = float(reach.max()) + 10 * error
    return float(brentq(lambda effect: _power(effect, error, reach) - power, 0.0, most))


def seeds_needed(
    effect: float,
    variances: Variances,
    num_items: float,
    *,
    power: float = POWER,
    level: float = LEVEL,
) -> int | None:
    """The fewest seeds with which ``effect`` is found with probability ``power``, at least
    ``MIN_SEEDS``. None where ``MOST_SEEDS`` are too few: then it takes more items.

    Raises:
        ValueError: when ``effect`` is not above 0.
    """
    if not effect > 0:
        raise ValueError(f"a difference to be found must be above 0, not {effect}")

    def suffices(num_seeds: int) -> bool:
        return power_of(effect, variances, num_seeds, num_items, level=level) >= power

    low, high = MIN_SEEDS - 1, MIN_SEEDS
    while not suffices(high):
        if high == MOST_SEEDS:
            return None
        low, high = high, min(2 * high, MOST_SEEDS)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if suffices(middle) else (middle, high)
    return high


def _power(effect: float, error: float, reach: np.ndarray) -> float:
    if not error > 0:
        return math.nan
    return float((ndtr((effect - reach) / error) + ndtr((-effect - reach) / error)).mean())


def _error_and_reach(
    variances: Variances, num_seeds: int, num_items: float, level: float
) -> tuple[float, np.ndarray]:
    """Standard error of the mean, and equally likely distances from 0 at which the test finds it.

    Raises:
        ValueError: for fewer than one item, or a level or variance out of range.
    """
    if not num_items >= 1 or not 0 < level < 1:
        raise ValueError(f"no test of {num_items} items at a level of {level}")
    rest = variances.rest / (num_seeds * num_items)
    from_seeds, shared = variances.seeds / num_seeds + rest, variances.items / num_items
    clusters = max(2.0, num_items / variances.items_per_cluster)
    seeds_A = from_seeds * _mean_square(num_seeds - 1, 128)[:, None]
    items_B = (shared + rest) * _mean_square(clusters - 1, 16)
    shared_AB = shared_variance(seeds_A, items_B, rest)
    total_AB = seeds_A + shared_AB
    share_AB = np.divide(seeds_A, total_AB, out=np.ones_like(total_AB), where=total_AB > 0)
    quantile_AB = np.interp(
        np.arcsin(np.sqrt(share_AB)), _ANGLE, _quantiles(num_seeds, clusters, level)
    )
    return math.sqrt(from_seeds + shared), np.sqrt(total_AB) * quantile_AB


def _mean_square(dof: float, num_places: int) -> np.ndarray:
    """Equally likely estimates of a variance of 1: chi-square over its degrees of freedom."""
    if dof > 1e6:
        return np.ones(1)
    place_P = (np.arange(num_places) + 0.5) / num_places
    return chdtri(dof, 1 - place_P) / dof


@lru_cache(maxsize=64)
def _quantiles(num_seeds: int, clusters: float, level: float) -> np.ndarray:
    """By ``_ANGLE``, the upper quantile of the test's draws with a variance of 1: those of
    ``evals.statistics.resampling``, without their drawing."""
    upper = 1 - level / 2
    items = 1.0 if clusters > 1e6 else float(stdtrit(clusters - 1, 0.975)) / Z
    place_P = (np.arange(_NUM_PLACES) + 0.5) / _NUM_PLACES
    dof = num_seeds - 1
    wide_P, narrow_P = (stdtrit(d, place_P) * math.sqrt(dof / d) for d in (dof, dof + 2))
    share_K = np.sin(_ANGLE[1:-1, None]) ** 2
    weight_K = (share_K / (share_K + (1 - share_K) / 2))[:, 0]

    def below(value_K: np.ndarray) -> np.ndarray:
        parts = (
            ndtr((value_K[:, None] - np.sqrt(share_K) * score_P) / (items * np.sqrt(1 - share_K)))
            for score_P in (wide_P, narrow_P)
        )
        wide_K, narrow_K = (part.mean(1) for part in parts)
        return weight_K * wide_K + (1 - weight_K) * narrow_K

    only_items, only_seeds = items * float(ndtri(upper)), float(stdtrit(dof, upper))
    low_K, high_K = np.zeros(len(share_K)), np.full(len(share_K), only_items + only_seeds)
    for _ in range(40):
        middle_K = (low_K + high_K) / 2
        enough_K = below(middle_K) >= upper
        low_K, high_K = np.where(enough_K, low_K, middle_K), np.where(enough_K, middle_K, high_K)
    return np.array([only_items, *high_K, only_seeds])
