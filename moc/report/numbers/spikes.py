"""Steps whose loss or gradient norm jumped, as ``moc.callbacks.spikes`` left them in journals."""

from __future__ import annotations

import math
from typing import NamedTuple

from moc.report.numbers.records import Run
from moc.report.numbers.results import Results


class Spike(NamedTuple):
    arm: str
    seed: int
    phase: str
    tokens: int  # training tokens seen
    loss: float
    loss_sigmas: float  # above the mean of the steps before; 0 within the band
    grad_norm: float
    grad_norm_sigmas: float
    skipped: bool  # the weights did not take this step


def spikes(results: Results) -> list[Spike]:
    """By arm, seed and time."""
    found = []
    for (arm, seed), run in results.runs.items():
        for phase in results.phases:
            loss, norm = _at(run, phase, "loss"), _at(run, phase, "grad_norm")
            of_loss = _at(run, phase, "spike_loss_sigmas")
            of_norm = _at(run, phase, "spike_grad_norm_sigmas")
            skipped = _at(run, phase, "skipped_for_spike")
            for tokens in sorted(of_loss.keys() | of_norm.keys()):
                spike = Spike(
                    arm,
                    seed,
                    phase,
                    tokens,
                    loss=loss.get(tokens, math.nan),
                    loss_sigmas=of_loss.get(tokens, 0.0),
                    grad_norm=norm.get(tokens, math.nan),
                    grad_norm_sigmas=of_norm.get(tokens, 0.0),
                    skipped=tokens in skipped,
                )
                found.append(spike)
    return found


def _at(run: Run, phase: str, name: str) -> dict[int, float]:
    """Values of a metric by training tokens."""
    return dict(zip(*run.series(f"{phase}/train/{name}"), strict=True))
