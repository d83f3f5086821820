"""What a few seeds and a few hundred items can tell: 95% intervals, tests, verdicts. No torch.

S seeds, N items. All seeds answer the same items, and items of one cluster (questions on one
passage, on one person) are not independent: see ``evals.statistics.resampling`` for the method, and
tests/unit/evals/test_statistics_coverage.py for its coverage as measured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.special import bdtr

from evals.statistics.intervals import Z
from evals.statistics.resampling import error_draws

LEVEL = 0.05  # of every test and, as 1 - LEVEL, of every interval
MIN_SEEDS = 3  # a claim about arms needs as many
FEW = 20  # clusters that changed: so few are counted, not resampled
NUM_DRAWS = 4000


class Interval(NamedTuple):
    """A value and its 95% interval; ``low`` and ``high`` are NaN when nothing can be said."""

    value: float
    low: float
    high: float


class Effect(NamedTuple):
    """An interval and the two-sided p of ``value == 0``: below 0.05 where the interval excludes 0.

    NaN, all but the value, when nothing can be said.
    """

    value: float
    low: float
    high: float
    p: float


def hierarchical_interval(
    values_SN: np.ndarray,
    cluster_N: Sequence[Any] | np.ndarray,
    *,
    num_draws: int = NUM_DRAWS,
    seed: int = 0,
) -> Effect:
    """Mean over seeds and items, for other seeds and other items of the same kinds.

    Made for differences (of scores, of bits); see ``share_interval`` for a score itself. With one
    seed it speaks about that one model: items alone are resampled. Where all seeds have the very
    same mean the seeds say nothing about themselves either, and the interval is that of the items.

    Args:
        values_SN: one value per seed and item. A seed with NaN alone is left out; then items that
            any seed lacks are.
        cluster_N: which items are not independent: any labels.
        num_draws, seed: of the resampling. The same arguments give the same numbers.

    Returns:
        NaN but for the value with fewer than two clusters, and where values that are no counts are
        all alike. Whole numbers are counts: there one item more, right or wrong, always stays
        possible (a standard error of 1 / (N + 2), as Agresti and Min, 2005, have without
        discordant pairs), and where only ``FEW`` clusters are not 0, p is at least that of the
        exact sign test on them, and the interval reaches 0 where that does not reject: resampling
        so few, a mean of 0 is drawn or just missed by chance.

    Raises:
        ValueError: when the table is not S by N, its values are infinite, or the clusters do not
            match it.
    """
    values_SN, cluster_N = complete_table(values_SN, cluster_N)
    effect = _resampled(values_SN, cluster_N, num_draws, seed)
    if math.isnan(effect.p) or not _are_counts(values_SN):
        return effect
    net_X = np.bincount(cluster_N, values_SN.sum(0))
    gained, lost = int((net_X > 0).sum()), int((net_X < 0).sum())
    if not 0 < gained + lost <= FEW:
        return effect
    p = max(effect.p, _sign_test(gained, lost))
    if p < LEVEL:
        return effect._replace(p=p)
    return Effect(effect.value, min(effect.low, 0.0), max(effect.high, 0.0), p)


def _resampled(values_SN: np.ndarray, cluster_N: np.ndarray, num_draws: int, seed: int) -> Effect:
    """``hierarchical_interval`` by resampling alone, of complete tables."""
    # the k-th smallest and largest draw, so that p < LEVEL exactly where they exclude 0
    k = math.floor(LEVEL / 2 * (num_draws + 1))
    if k < 1:
        raise ValueError(f"{num_draws} draws have no 95% interval; take at least 39, better 1000")
    if not values_SN.size:
        return Effect(math.nan, math.nan, math.nan, math.nan)
    value = float(values_SN.mean())
    cells_SX = cluster_cells(values_SN, cluster_N)
    smallest = 1 / (values_SN.shape[1] + 2) ** 2 if _are_counts(values_SN) else 0.0
    draws_R = error_draws(cells_SX, smallest, num_draws, seed)
    if draws_R is None:
        return Effect(value, math.nan, math.nan, math.nan)
    draws_R = np.sort(value + draws_R)
    beyond = min((draws_R <= 0).sum(), (draws_R >= 0).sum())
    p = min(1.0, 2 * (1 + int(beyond)) / (num_draws + 1))
    return Effect(value, float(draws_R[k - 1]), float(draws_R[-k]), p)


def share_interval(
    correct_SN: np.ndarray, cluster_N: Sequence[Any] | np.ndarray, *, num_draws: int = NUM_DRAWS
) -> Interval:
    """Mean of scores from 0 to 1, with an interval that stays between them.

    Wilson's (1927), in which the number of items is the one that would give the half width of
    ``hierarchical_interval``. All right or all wrong: the number of clusters, since nothing is
    known of how alike their items are, so that 50 of 50 right is not certainty.

    Raises:
        ValueError: as ``hierarchical_interval``, or for values outside 0 to 1.
    """
    correct_SN, cluster_N = complete_table(correct_SN, cluster_N)
    if ((correct_SN < 0) | (correct_SN > 1)).any():
        raise ValueError(
            "shares must lie between 0 and 1; these go from "
            f"{correct_SN.min()} to {correct_SN.max()}: use hierarchical_interval"
        )
    value, low, high, _ = _resampled(correct_SN, cluster_N, num_draws, 0)
    num_clusters = len(np.unique(cluster_N))
    if num_clusters < 2:
        return Interval(value, math.nan, math.nan)
    variance = value * (1 - value)
    # z^2 over the effective number of items; the score's own rounding decides what is 0 or 1
    inverse = Z * Z / num_clusters
    if variance > 1e-12 and high > low:
        inverse = ((high - low) / 2) ** 2 / variance
    middle = (value + inverse / 2) / (1 + inverse)
    half = math.sqrt(inverse * variance + inverse**2 / 4) / (1 + inverse)
    return Interval(value, max(0.0, middle - half), min(1.0, middle + half))


def clearly_above(
    values_SN: np.ndarray, cluster_N: Sequence[Any] | np.ndarray, baseline: float
) -> bool:
    """Whether the interval of these shares lies above ``baseline``, chance or majority.

    Only then does a score show knowledge that could be forgotten or retained.
    """
    return share_interval(values_SN, cluster_N).low > baseline


def difference_in_differences(
    before_SN: np.ndarray,
    after_SN: np.ndarray,
    base_before_SN: np.ndarray,
    base_after_SN: np.ndarray,
    cluster_N: Sequence[Any] | np.ndarray,
    *,
    num_draws: int = NUM_DRAWS,
    seed: int = 0,
) -> Effect:
    """How much more an arm changed than the base arm: (after - before) - (the base's).

    Paired over seeds (row s of both arms has the same seed) and over items. Positive where the arm
    forgets less, for scores of which more is better.

    Raises:
        ValueError: when the four tables are not of the same seeds and items.
    """
    tables = [np.asarray(t, float) for t in (before_SN, after_SN, base_before_SN, base_after_SN)]
    if len({table.shape for table in tables}) > 1:
        raise ValueError(
            f"tables of shapes {[table.shape for table in tables]} cannot be paired: give the "
            "seeds and items that all of them have"
        )
    before, after, base_before, base_after = tables
    change_SN = (after - before) - (base_after - base_before)
    return hierarchical_interval(change_SN, cluster_N, num_draws=num_draws, seed=seed)


def mcnemar_exact(before_N: np.ndarray, after_N: np.ndarray) -> float:
    """Two-sided p that one model's items turn from right to wrong as often as back (McNemar, 1947).

    The exact binomial test on the items that changed; items with NaN are left out. It takes items
    for independent: with clusters, prefer ``hierarchical_interval``.

    Raises:
        ValueError: for different items, or for anything but 0 and 1.
    """
    before_N, after_N = _rights(before_N, 1), _rights(after_N, 1)
    if before_N.shape != after_N.shape:
        raise ValueError(f"{len(before_N)} and {len(after_N)} items cannot be paired")
    return _sign_test(int((before_N < after_N).sum()), int((before_N > after_N).sum()))


def churn(
    before_SN: np.ndarray, after_SN: np.ndarray, cluster_N: Sequence[Any] | np.ndarray
) -> tuple[Interval, Interval]:
    """Shares of all items that turned from right to wrong, and from wrong to right.

    A score that stays the same may hide as much forgetting as learning.

    Raises:
        ValueError: for different items, or for anything but 0 and 1.
    """
    before_SN, after_SN = _rights(before_SN, 2), _rights(after_SN, 2)
    if before_SN.shape != after_SN.shape:
        raise ValueError(f"tables of {before_SN.shape} and {after_SN.shape} cannot be paired")
    change_SN = after_SN - before_SN
    lost_SN, gained_SN = np.maximum(-change_SN, 0), np.maximum(change_SN, 0)  # both keep NaN
    return share_interval(lost_SN, cluster_N), share_interval(gained_SN, cluster_N)


def holm(p_values: Sequence[float]) -> list[float]:
    """P values adjusted for their number (Holm, 1979). NaN stays NaN, and is not counted."""
    adjusted = [math.nan] * len(p_values)
    tested = sorted((p, i) for i, p in enumerate(p_values) if not math.isnan(p))
    largest = 0.0
    for rank, (p, i) in enumerate(tested):
        largest = max(largest, min(1.0, (len(tested) - rank) * p))
        adjusted[i] = largest
    return adjusted


def verdict(
    effect: Effect,
    adjusted_p: float,
    *,
    better: str = "forgets less",
    worse: str = "forgets more",
) -> str:
    """What a difference in differences says, in words: by the sign if adjusted p < 0.05.

    It does not know how many seeds there were: from fewer than three it is no claim about arms.
    """
    if not adjusted_p < LEVEL or math.isnan(effect.low):
        return "not distinguishable"
    return better if effect.value > 0 else worse


def _sign_test(gained: int, lost: int) -> float:
    """Two-sided p of as many gains as losses, by the binomial distribution."""
    return min(1.0, 2 * float(bdtr(min(lost, gained), lost + gained, 0.5)))


def _are_counts(values_SN: np.ndarray) -> bool:
    return bool((values_SN == np.round(values_SN)).all())


def complete_table(
    values_SN: np.ndarray, cluster_N: Sequence[Any] | np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The seeds that have values, the items that all of those have, and clusters by number."""
    values_SN, labels_N = np.asarray(values_SN, float), np.asarray(cluster_N)
    if values_SN.ndim != 2 or labels_N.shape != values_SN.shape[1:]:
        raise ValueError(
            f"values of shape {values_SN.shape} and clusters of shape {labels_N.shape}: need "
            "(seeds, items) and (items,)"
        )
    if np.isinf(values_SN).any():
        raise ValueError("infinite values have no mean: clip them, or use NaN to leave them out")
    values_SN = values_SN[~np.isnan(values_SN).all(1)]
    kept_N = ~np.isnan(values_SN).any(0)
    return values_SN[:, kept_N], np.unique(labels_N[kept_N], return_inverse=True)[1]


def _rights(correct: np.ndarray, num_dims: int) -> np.ndarray:
    correct = np.asarray(correct, float)
    if correct.ndim != num_dims or not (np.isin(correct, (0, 1)) | np.isnan(correct)).all():
        raise ValueError(f"need {num_dims} dimensions of 0 and 1, not {correct!r}")
    return correct


def cluster_cells(values_SN: np.ndarray, cluster_N: np.ndarray) -> np.ndarray:
    """One value per seed and cluster; their plain means are those of the items (S, X).

    Clusters differ in size, so that a mean over items is a ratio: its linearisation.
    """
    num_items = values_SN.shape[1]
    size_X = np.bincount(cluster_N)
    mean = values_SN.mean()
    sum_SX = np.stack([np.bincount(cluster_N, row) for row in values_SN])
    return mean + (sum_SX - size_X * mean) * len(size_X) / num_items
