"""The iso-FLOP solver: the dense shape that costs what an arm with memory costs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from moc.model.config import ModelConfig, validate_model

FlopsFunction = Callable[[ModelConfig], float]


def solve_iso_flop(
    config: ModelConfig, target: float, flops: FlopsFunction, *, tolerance: float = 0.005
) -> tuple[ModelConfig, float]:
    """The shape whose ``flops`` come nearest to ``target``, and its relative error.

    Depth first: the most layers that stay at or below the target with the MLP as it is. Then MLP
    width, in multiples of 8, or of 1 where those miss ``tolerance``. Fewer layers are tried
    when the width is too coarse for ``tolerance``.

    Raises:
        ValueError: if no shape comes within ``tolerance``.
    """
    best: tuple[ModelConfig, float] | None = None
    for num_layers in range(_deepest(config, target, flops), 0, -1):
        shape = replace(config, num_layers=num_layers)
        solved = _solve_width(shape, target, flops, tolerance)
        if solved is None:
            continue
        if abs(solved[1]) <= tolerance:
            return solved
        if best is None or abs(solved[1]) < abs(best[1]):
            best = solved
    nearest = "none fits" if best is None else f"the nearest is off by {best[1]:+.2%}"
    raise ValueError(
        f"no num_layers and mlp_dim reach {target:.4g} FLOPs per token to within {tolerance:g} "
        f"({nearest}); change the arm's dim, or set iso_flop.solve: false and iso_flop.tolerance"
    )


def _deepest(config: ModelConfig, target: float, flops: FlopsFunction) -> int:
    """The most layers at or below ``target``; the fewest possible when all are above it."""
    deepest, num_layers = 0, 1
    while True:
        deeper = replace(config, num_layers=num_layers)
        if _is_valid(deeper):
            if deepest and flops(deeper) > target:
                return deepest
            deepest = num_layers
        elif num_layers > config.num_layers:
            return deepest
        num_layers += 1


def _solve_width(
    config: ModelConfig, target: float, flops: FlopsFunction, tolerance: float
) -> tuple[ModelConfig, float] | None:
    """``config`` with the best ``mlp_dim`` (FLOPs are linear in it); None where there is none."""
    if not _is_valid(config):
        return None
    narrow, wider = (flops(replace(config, mlp_dim=width)) for width in (1, 2))
    exact = 1 + (target - narrow) / (wider - narrow)
    solved = None
    for unit in (8, 1):
        shape = replace(config, mlp_dim=round(exact / unit) * unit)
        if shape.mlp_dim >= 1:
            solved = shape, flops(shape) / target - 1
            if abs(solved[1]) <= tolerance:  # odd widths are slow on matrix units
                break
    return solved


def _is_valid(config: ModelConfig) -> bool:
    try:
        validate_model(config)
    except ValueError:
        return False
    return True
