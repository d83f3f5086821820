"""What the runs of a process share."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from moc.evaluate.evaluator import BoundaryEvaluator


class Tools(NamedTuple):
    evaluator: BoundaryEvaluator
    peak_flops: float | None = None  # of one device, for MFU; None leaves it out
    sync: Callable[[], None] = lambda: None  # called when a journal has more to show
