"""Draws of how far the mean of a seeds x clusters table may be off. S seeds, X clusters, R draws.

Every score is a table: S seeds (models trained alike) by N items in X clusters, all seeds on the
same items, so seeds and items are crossed, not nested. A claim is about other seeds *and* other
items, hence, by a two-way analysis of variance with random effects,

    Var(mean) = (MS_seeds + MS_clusters - MS_interaction) / (S X)

Resampling both sides (Owen, "The pigeonhole bootstrap", 2007) needs more than three seeds: drawn
with replacement, they spread too little and know nothing of their own uncertainty. So:

- seeds: Student's t with S - 1 degrees of freedom on the seeds' means, which carry the interaction;
- items: a bootstrap over clusters of the items' means over seeds, scaled to the variance that the
  interaction does not explain: max(MS_clusters - MS_interaction, 0) / (S X);
- their sum is a Behrens-Fisher problem. With three seeds, draws of the one plus draws of the other
  hold the truth in up to 97.6% for 95%, Satterthwaite's degrees of freedom in as few as 85%. A
  prior that matches probabilities (Ghosh and Kim, "The Behrens-Fisher problem revisited", 2001)
  gives a draw the weight 1 + items' variance / seeds' variance; it is made for many seeds and holds
  93.6% to 95.3% with three. Half of the second term holds 94.4% to 95.8%, and is what we take.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from scipy.special import ndtri, stdtrit

from evals.statistics.intervals import Z

_MANY_CLUSTERS = 1000  # from here on their mean is normal, and resampling them only costs time


def error_draws(
    cells_SX: np.ndarray, smallest: float, num_draws: int, seed: int
) -> np.ndarray | None:
    """Draws of the mean's error (R,), or None without any sign of how large it is.

    Args:
        smallest: the variance is at least this.
    """
    num_seeds, num_clusters = cells_SX.shape
    if num_clusters < 2:
        return None
    from_seeds, from_items, interaction = mean_squares(cells_SX)
    shared = float(shared_variance(from_seeds, from_items, interaction))
    shared = max(shared, smallest - from_seeds)
    total = from_seeds + shared
    if total <= (1e-12 * np.abs(cells_SX).max()) ** 2:
        return None
    draws_R = np.zeros(num_draws)
    if shared > 0:
        error_X = cells_SX.mean(0) - cells_SX.mean()
        draws_R = math.sqrt(shared) * _item_scores(error_X, num_draws, seed)
    if from_seeds > 0:
        scores_R = _seed_scores(num_seeds, from_seeds / total, num_draws, seed)
        draws_R = draws_R + math.sqrt(from_seeds) * scores_R
    return draws_R


def mean_squares(cells_SX: np.ndarray) -> tuple[float, float, float]:
    """MS_seeds, MS_clusters and MS_interaction, each over S X; the seeds' and the interaction's are
    0 where all seeds have the same mean, and the interval is that of the items."""
    num_seeds, num_clusters = cells_SX.shape
    mean, seed_S, item_X = cells_SX.mean(), cells_SX.mean(1), cells_SX.mean(0)
    from_items = float(((item_X - mean) ** 2).sum()) / (num_clusters - 1) / num_clusters
    # a rounding error is not a difference between seeds
    if num_seeds == 1 or np.ptp(seed_S) <= 1e-12 * np.abs(cells_SX).max():
        return 0.0, from_items, 0.0
    dof = num_seeds - 1
    from_seeds = float(((seed_S - mean) ** 2).sum()) / dof / num_seeds
    rest_SX = cells_SX - seed_S[:, None] - item_X + mean
    interaction = float((rest_SX**2).sum()) / dof / (num_clusters - 1)
    return from_seeds, from_items, interaction / (num_seeds * num_clusters)


def shared_variance(
    from_seeds: np.ndarray | float, from_items: np.ndarray | float, interaction: float
) -> np.ndarray:
    """What the items that all seeds share add to the variance of the mean that the seeds tell."""
    # Seeds that agree by luck must not make the items certain: half a standard error remains
    # of what they say alone. More would be conservative where seeds and items are all noise.
    least = np.maximum(np.asarray(from_items) / 4 - from_seeds, 0.0)
    return np.maximum(np.asarray(from_items) - interaction, least)


def _item_scores(error_X: np.ndarray, num_draws: int, seed: int) -> np.ndarray:
    """The bootstrap's shape, scaled to mean 0 and the spread of a t with X - 1 dof (R,)."""
    num_clusters = len(error_X)
    scores_R = np.zeros(num_draws)
    if num_clusters <= _MANY_CLUSTERS:
        scores_R = _counts(num_clusters, num_draws, seed) @ error_X.astype(np.float32)
    spread = float(scores_R.std())
    if spread <= 1e-6 * np.abs(error_X).max():  # many clusters, or all alike
        scores_R = np.random.default_rng(seed).permutation(ndtri(_grid(num_draws)))
        spread = 1.0
    scale = float(stdtrit(num_clusters - 1, 0.975)) / Z
    return (scores_R - scores_R.mean()) * (scale / spread)


@lru_cache(maxsize=4)  # tables of a study have few sizes; 4000 draws of 1000 clusters take 16 MB
def _counts(num_clusters: int, num_draws: int, seed: int) -> np.ndarray:
    """How often each cluster is drawn, float32 (R, X)."""
    drawn_RX = np.random.default_rng(seed).integers(num_clusters, size=(num_draws, num_clusters))
    drawn_RX += np.arange(num_draws)[:, None] * num_clusters
    counts = np.bincount(drawn_RX.ravel(), minlength=num_draws * num_clusters)
    counts_RX = counts.reshape(num_draws, num_clusters).astype(np.float32)
    counts_RX.setflags(write=False)
    return counts_RX


def _seed_scores(num_seeds: int, share: float, num_draws: int, seed: int) -> np.ndarray:
    """Scores of a standard error that S seeds tell, when the items have one too (R,).

    Under the weight of a draw, see above, some of them are of t with S - 1 degrees of freedom, and
    the rest of t with S + 1, narrower.

    Args:
        share: of the seeds in the variance.
    """
    wide_R, narrow_R, place_R = _student_scores(num_seeds - 1, num_draws, seed)
    return np.where(place_R < share / (share + (1 - share) / 2), wide_R, narrow_R)


@lru_cache(maxsize=16)
def _student_scores(dof: int, num_draws: int, seed: int) -> tuple[np.ndarray, ...]:
    """Of t with ``dof`` and with ``dof + 2``, and an order of their own from 0 to 1 (R,) each."""
    wide_R, narrow_R = (stdtrit(d, _grid(num_draws)) * math.sqrt(dof / d) for d in (dof, dof + 2))
    order = np.random.default_rng((seed, dof)).permutation(num_draws)
    place_R = np.random.default_rng((seed, dof, 1)).permutation(_grid(num_draws))
    found = wide_R[order], narrow_R[order], place_R
    for scores_R in found:
        scores_R.setflags(write=False)
    return found


def _grid(num_draws: int) -> np.ndarray:
    """Evenly spread probabilities: draws without the noise of drawing."""
    return (np.arange(num_draws) + 0.5) / num_draws
