"""How runs say by what their bank was updated."""

from __future__ import annotations

from typing import Any


def bank_optimizer(arm: dict[str, Any]) -> str:
    """``dense``, ``lazy`` or ``frozen``, by phase where phases differ; ``none`` without memory.

    Args:
        arm: an ``ArmConfig`` as plain data; one that an earlier version wrote has no lazy banks.
    """
    if arm["model"]["memory"] is None:
        return "none"
    of_phase = {}
    for name, phase in arm["phases"].items():
        optimizer = phase["optimizer"]
        kind = "lazy" if optimizer.get("lazy_bank") else "dense"
        of_phase[name] = "frozen" if optimizer["bank"]["freeze"] else kind
    if len(set(of_phase.values())) == 1:
        return next(iter(of_phase.values()))
    return ", ".join(f"{name}: {kind}" for name, kind in of_phase.items())
