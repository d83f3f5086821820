"""A mean over seeds and how sure it is."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Estimate:
    """A mean over ``num_seeds``, with its 95% interval if there is one."""

    value: float
    num_seeds: int
    low: float = math.nan  # NaN: nothing says how far off the value may be
    high: float = math.nan

    @property
    def has_interval(self) -> bool:
        return math.isfinite(self.low) and math.isfinite(self.high)

    @property
    def near_zero(self) -> bool:
        """Whether the interval includes 0."""
        return self.low <= 0 <= self.high


def over_seeds(values: Sequence[float]) -> Estimate | None:
    """Mean of one value per seed with Student's t interval, which two seeds or more allow.

    Values that are not finite are left out; None if there are no others.
    """
    known = [value for value in values if math.isfinite(value)]
    if not known:
        return None
    mean = statistics.fmean(known)
    if len(known) == 1:
        return Estimate(mean, 1)
    from scipy.special import stdtrit  # here: a report without such tables need not wait for it

    half = float(stdtrit(len(known) - 1, 0.975)) * statistics.stdev(known) / math.sqrt(len(known))
    return Estimate(mean, len(known), mean - half, mean + half)


def over_records(records: Sequence[Mapping[str, float]]) -> Estimate | None:
    """``over_seeds`` of ``{"value", "low", "high"}``, one per seed; a single one keeps its own
    interval, which is over the windows or items that it was measured on."""
    known = [record for record in records if math.isfinite(record["value"])]
    if len(known) == 1:
        return Estimate(known[0]["value"], 1, known[0]["low"], known[0]["high"])
    return over_seeds([record["value"] for record in known])
