"""Settings of what a study runs on: they decide no result, so no run is told apart by them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from moc.ranges import Range


@dataclass
class LaunchConfig:
    """How the runs of a study are spread over a machine. One run is one task."""

    # threads of a run; null: the cores, shared among the runs at once. Sums over several threads
    # round otherwise than over one: for the same weights to the bit however a study is run, set it
    # (it is also obeyed where one process does all runs)
    cpus: Annotated[int | None, Range(1, 1024)] = None
    # how often a run that died is started again
    retries: Annotated[int, Range(0, 1000)] = 3
