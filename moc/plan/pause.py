"""Where a run stops that is to train on a part of its tokens and go on later."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from moc.config.schema import PhaseConfig


class Pause(NamedTuple):
    phase: int  # its index
    step: int  # of that phase, counted from 1
    at_end: bool  # of the phase: there is a boundary
    tokens: int  # that the run has trained on


def find_pause(phases: Sequence[PhaseConfig], share: float | None) -> Pause | None:
    """After the step that is nearest to ``share`` of all tokens of ``phases``, the first at least;
    None: not before the end."""
    if share is None:
        return None
    total = sum(phase.num_steps() * phase.tokens_per_step for phase in phases)
    before = 0
    for index, phase in enumerate(phases):
        num_steps = phase.num_steps()
        step = max(1, round((share * total - before) / phase.tokens_per_step))
        if step <= num_steps:
            tokens = before + step * phase.tokens_per_step
            at_end = step == num_steps
            return None if tokens == total else Pause(index, step, at_end, tokens)
        before += num_steps * phase.tokens_per_step
    return None
