"""95% intervals of paired differences. Plain numpy. P items or tokens, X clusters, R resamples."""

from __future__ import annotations

import math

import numpy as np

NUM_RESAMPLES = 2000
Z = 1.959963984540054  # normal quantile at 0.975


def paired_difference(before_P: np.ndarray, after_P: np.ndarray) -> dict[str, float]:
    """Change of accuracy on the same items, with the 95% interval of Agresti and Min (2005).

    Half an item is added to each cell of the table of rights and wrongs, so that no discordant
    pair among a few items does not pass for certainty.
    """
    gained, lost = ((after_P > before_P).sum() + 0.5, (after_P < before_P).sum() + 0.5)
    total = len(before_P) + 2
    middle = (gained - lost) / total
    half = Z * math.sqrt(gained + lost - (gained - lost) ** 2 / total) / total
    value = float(after_P.mean() - before_P.mean())
    return {"value": value, "low": float(middle - half), "high": float(middle + half)}


def clustered_mean(value_P: np.ndarray, cluster_P: np.ndarray) -> dict[str, float]:
    """Mean of the values, and its 95% percentile interval over resampled clusters.

    The tokens of a window are not independent, so windows are drawn, with all of their tokens: in
    each resample the mean is the drawn windows' sum over their count.
    """
    _, cluster_P = np.unique(cluster_P, return_inverse=True)
    sum_X, count_X = np.bincount(cluster_P, value_P), np.bincount(cluster_P)
    generator = np.random.default_rng(0)
    drawn_RX = generator.integers(len(sum_X), size=(NUM_RESAMPLES, len(sum_X)))
    mean_R = sum_X[drawn_RX].sum(1) / count_X[drawn_RX].sum(1)
    low, high = np.quantile(mean_R, [0.025, 0.975])
    return {"value": float(np.mean(value_P)), "low": float(low), "high": float(high)}
