"""Learning-rate schedules. A new kind is its name in ``ScheduleConfig`` and its ``case`` here."""

from __future__ import annotations

import math

from moc.config.schema import ScheduleConfig


def lr_factor(step: int, num_steps: int, config: ScheduleConfig) -> float:
    """Learning rate of 0-based ``step`` over its peak.

    Warm-up rises linearly and reaches 1 at step ``warmup_steps - 1``. The decay starts at step
    ``num_steps * (1 - decay_fraction)`` (wsd) or after the warm-up (cosine, linear) and would
    reach ``final_ratio`` at step ``num_steps``.
    """
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    start = config.warmup_steps
    if config.kind == "wsd":
        start = max(start, round(num_steps * (1 - config.decay_fraction)))
    progress = max(0.0, (step - start) / max(1, num_steps - start))
    match config.kind:
        case "constant":
            return 1.0
        case "cosine":
            share = (1 + math.cos(math.pi * progress)) / 2
        case "linear" | "wsd":
            share = 1 - progress
    return config.final_ratio + (1 - config.final_ratio) * share
