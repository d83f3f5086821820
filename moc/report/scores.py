"""One task of one arm at one boundary, over seeds and items."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evals.statistics.forgetting import wilson_interval
from evals.statistics.inference import share_interval
from moc.report.items import Common


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


def score_of(records: Sequence[Mapping[str, Any]], common: Common | None) -> Score | None:
    """The mean of ``records``, one per seed, with the interval that the ``common`` items of these
    seeds give; Wilson's, over the items of one seed, where the items were not kept."""
    if not records:
        return None
    value = statistics.fmean(record["value"] for record in records)
    num_items = min(record["num_items"] for record in records)
    low, high = wilson_interval(value, num_items)
    if common is not None and len(common.seeds) == len(records):
        found = share_interval(common.values[0], common.cluster_N)
        low, high = (low, high) if math.isnan(found.low) else (found.low, found.high)
    chance, majority = records[0]["chance"], records[0]["majority"]
    return Score(value, low, high, chance, majority, num_items)
