"""The ``tuning:`` section of a study: what ``moc tune`` tries for every arm, and on what."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

from moc.ranges import Range


@dataclass
class TuningConfig:
    """Every arm trains once per point of the grid and seed, on ``budget`` of its tokens."""

    # setting of an arm (phases.facts.optimizer.beta2; phases.*. for all of them) -> values to try.
    # lr_scale multiplies all learning rates, lr_scale.backbone, .memory_layers, .bank those of one
    # group
    axes: dict[str, list[Any]] = field(default_factory=dict)
    # none of the study's own: what was chosen on a seed looks better there than elsewhere
    seeds: Annotated[list[int], Range(-(2**31), 2**32 - 1)] = field(default_factory=lambda: [1000])
    # share of each phase's tokens that a trial trains on, the same for every arm
    budget: Annotated[float, Range(0, 1, without="low")] = 0.5
    # share of the training documents that trials leave out, and are chosen by the loss on: the
    # comparison trains on them, and is scored on its own validation text
    hold_out: Annotated[float, Range(0, 0.5, without="low")] = 0.05
