"""One task of one arm at one boundary, over seeds and items."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from evals.statistics.forgetting import wilson_interval
from evals.statistics.inference import share_interval
from moc.report.numbers.items import Common
from moc.report.numbers.records import TaskScore


@dataclass(frozen=True)
class Score:
    """Averaged over the seeds that got there."""

    value: float  # share of items, 0 to 1
    low: float  # 95% interval, over seeds and items
    high: float
    chance: float
    majority: float
    num_items: int

    @property
    def baseline(self) -> float:
        """What a model that knows nothing can score."""
        return max(self.chance, self.majority)

    @property
    def near(self) -> bool:
        """Whether the interval reaches the baseline: no knowledge was shown."""
        return self.low <= self.baseline


def score_of(scores: Sequence[TaskScore], common: Common | None) -> Score | None:
    """The mean of ``scores``, one per seed, with the interval that the ``common`` items of these
    seeds give; Wilson's, over the items of one seed, where the items were not kept."""
    if not scores:
        return None
    value = statistics.fmean(score.value for score in scores)
    num_items = min(score.num_items for score in scores)
    low, high = wilson_interval(value, num_items)
    if common is not None and len(common.seeds) == len(scores):
        found = share_interval(common.values[0], common.cluster_N)
        low, high = (low, high) if math.isnan(found.low) else (found.low, found.high)
    return Score(value, low, high, scores[0].chance, scores[0].majority, num_items)
