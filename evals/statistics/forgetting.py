"""What scores say about forgetting. No torch.

R[b, i] is the score of evaluation i at boundary b; NaN where it was not measured. Forgetting
follows "Riemannian Walk" (arXiv 1801.10112). Intervals and tests are in
``evals.statistics.inference``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from evals.statistics.inference import Effect, clearly_above, hierarchical_interval
from evals.statistics.intervals import Z

Record = Mapping[str, Any]  # one boundary's evals.json


class ScoreMatrix(NamedTuple):
    boundaries: list[str]  # rows, in training order
    names: list[str]  # columns: tasks or sources
    values: np.ndarray  # R, float64 (boundaries, names)


def score_matrix(records: Sequence[Record]) -> ScoreMatrix:
    """The headline score of every task at every boundary of one run.

    Raises:
        ValueError: when the records are not in boundary order.
    """
    return _matrix(
        records, [{name: task["value"] for name, task in r["tasks"].items()} for r in records]
    )


def bits_per_byte_matrix(records: Sequence[Record]) -> ScoreMatrix:
    """Bits per byte of every source at every boundary of one run; lower is better.

    Raises:
        ValueError: when the records are not in boundary order.
    """
    return _matrix(records, [r["bits_per_byte"] for r in records])


def transition_deltas(values: np.ndarray) -> np.ndarray:
    """Change of every evaluation over every transition (boundaries - 1, names)."""
    return np.diff(values, axis=0)


def forgetting(values: np.ndarray) -> np.ndarray:
    """Best earlier score minus the last one (names,), for scores of which more is better.

    Negative where the last phase improved on everything before; NaN with fewer than two boundaries.
    """
    return _best_earlier(values) - _last(values)


def loss_forgetting(values: np.ndarray) -> np.ndarray:
    """Last loss minus the lowest earlier one (names,): ``forgetting`` for losses.

    Positive means forgotten, as in ``forgetting``.
    """
    return forgetting(-np.asarray(values, dtype=float))


def forgetting_so_far(records: Sequence[Record]) -> dict[str, float]:
    """``forgetting`` of every task of the last record, where an earlier one measured it too.

    Empty at the first two boundaries: before the second phase there is nothing to forget.

    Raises:
        ValueError: when the records are not in boundary order.
    """
    _, names, values = score_matrix(records)
    if len(values) < 3:
        return {}
    lost = dict(zip(names, forgetting(values).tolist(), strict=True))
    return {name: value for name, value in lost.items() if math.isfinite(value)}


def retention(
    before_SN: np.ndarray,
    after_SN: np.ndarray,
    cluster_N: Sequence[Any] | np.ndarray,
    baseline: float,
) -> Effect:
    """Share of the score above ``baseline`` that is left: (after - baseline) / (before - baseline).

    Of the means over seeds and items, with an interval to first order in its error; one row for one
    seed. Below 0 where the score fell under its baseline, above 1 where it rose.

    Args:
        before_SN, after_SN: shares (seeds, items), for instance 0 and 1.
        cluster_N: which items are not independent.
        baseline: the better of chance and majority.

    Returns:
        NaN unless the score before was ``clearly_above`` its baseline: what was never there cannot
        be retained.

    Raises:
        ValueError: for tables of different seeds or items.
    """
    before_SN, after_SN = np.asarray(before_SN, float), np.asarray(after_SN, float)
    if before_SN.shape != after_SN.shape:
        raise ValueError(f"tables of {before_SN.shape} and {after_SN.shape} cannot be paired")
    # a seed or an item that one of the two lacks would pass for a change
    missing_SN = np.isnan(before_SN) | np.isnan(after_SN)
    before_SN, after_SN = (
        np.where(missing_SN, np.nan, table_SN) - baseline for table_SN in (before_SN, after_SN)
    )
    if not clearly_above(before_SN + baseline, cluster_N, baseline):
        return Effect(math.nan, math.nan, math.nan, math.nan)
    scale = before_SN[~missing_SN].mean()
    ratio = after_SN[~missing_SN].mean() / scale
    return hierarchical_interval(ratio + (after_SN - ratio * before_SN) / scale, cluster_N)


def wilson_interval(value: float, num_items: int) -> tuple[float, float]:
    """95% interval of a share ``value`` of ``num_items`` (E. B. Wilson, 1927).

    Raises:
        ValueError: without items, or when ``value`` is no share.
    """
    if num_items < 1 or not 0 <= value <= 1:
        raise ValueError(f"no interval for a share of {value} among {num_items} items")
    scale = 1 + Z * Z / num_items
    center = (value + Z * Z / (2 * num_items)) / scale
    half = Z / scale * math.sqrt(value * (1 - value) / num_items + (Z / (2 * num_items)) ** 2)
    return max(0.0, center - half), min(1.0, center + half)


def _matrix(records: Sequence[Record], rows: Sequence[Mapping[str, float]]) -> ScoreMatrix:
    indices = [record["index"] for record in records]
    if indices != sorted(set(indices)):
        raise ValueError(
            f"records must be in boundary order, one each; their indices are {indices}"
        )
    names = list(dict.fromkeys(name for row in rows for name in row))
    values = [[row.get(name, math.nan) for name in names] for row in rows]
    return ScoreMatrix(
        [record["boundary"] for record in records],
        names,
        np.array(values, dtype=float).reshape(len(rows), len(names)),
    )


def _best_earlier(values: np.ndarray) -> np.ndarray:
    earlier = np.asarray(values, dtype=float)[:-1]
    best = np.max(np.where(np.isnan(earlier), -np.inf, earlier), axis=0, initial=-np.inf)
    return np.where(np.isneginf(best), np.nan, best)


def _last(values: np.ndarray) -> np.ndarray:
    return values[-1] if len(values) else np.full(values.shape[1], np.nan)
