"""Whether a figure of training has left the band in which it moved. Needs the standard library."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

WINDOW = 128  # steps that make a band
MIN_STEPS = 32  # fewer say too little of how widely a figure moves
LIMIT = 6.0  # standard deviations above the mean


class Band:
    """Mean and spread of the logarithms of a positive figure's last ``WINDOW`` values: losses and
    gradient norms move by factors, and their tails are long on a linear scale.

    What leaves the band enters it at its edge: one spike does not widen it so far that the next
    goes unseen, and a figure that has moved for good is the new normal after a few steps.
    """

    def __init__(self, values: Sequence[float] = ()) -> None:
        self.values = deque(values, maxlen=WINDOW)  # logarithms, the oldest first

    def leave(self, value: float) -> float:
        """By how many standard deviations ``value`` lies above the band's mean if that is more than
        ``LIMIT``, else 0; from now on it is a part of the band."""
        if not (value > 0 and math.isfinite(value)):
            return 0.0  # of a step without a gradient; what is not finite has a guard of its own
        level, sigmas = math.log(value), 0.0
        if len(self.values) >= MIN_STEPS:
            mean = math.fsum(self.values) / len(self.values)
            # statistics.stdev takes five times as long, and this is done twice a step
            variance = math.fsum((x - mean) ** 2 for x in self.values) / (len(self.values) - 1)
            # steps that differ by less than 1% are alike: nothing leaves a band for rounding
            spread = max(math.sqrt(variance), 0.01)
            sigmas = (level - mean) / spread
            level = min(level, mean + LIMIT * spread)
        self.values.append(level)
        return sigmas if sigmas > LIMIT else 0.0
