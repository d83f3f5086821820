"""The solver behind iso-FLOP and iso-parameter baselines: the shape that costs what another arm
costs, in FLOPs per token or in parameters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from moc.model.config import ModelConfig
from moc.model.validate import validate_model

Cost = Callable[[ModelConfig], float]  # linear in mlp_dim, growing with num_layers


def solve_shape(
    config: ModelConfig,
    target: float,
    cost: Cost,
    *,
    tolerance: float = 0.005,
    unit: str = "FLOPs per token",
    setting: str = "iso_flop",
) -> tuple[ModelConfig, float]:
    """The shape whose ``cost`` comes nearest to ``target``, and its relative error.

    Depth first: the most layers that stay at or below the target with the MLP as it is. Then MLP
    width, in multiples of 8, or of 1 where those miss ``tolerance``. Fewer layers are tried
    when the width is too coarse for ``tolerance``.

    Args:
        unit: of ``cost``; for the error, as is ``setting``, which asked for the shape.

    Raises:
        ValueError: if no shape comes within ``tolerance``.
    """
    best: tuple[ModelConfig, float] | None = None
    for num_layers in range(_deepest(config, target, cost), 0, -1):
        shape = replace(config, num_layers=num_layers)
        solved = _solve_width(shape, target, cost, tolerance)
        if solved is None:
            continue
        if abs(solved[1]) <= tolerance:
            return solved
        if best is None or abs(solved[1]) < abs(best[1]):
            best = solved
    nearest = "none fits" if best is None else f"the nearest is off by {best[1]:+.2%}"
    raise ValueError(
        f"no num_layers and mlp_dim reach {target:.4g} {unit} to within {tolerance:g} ({nearest}); "
        f"change the arm's dim, or set {setting}.solve: false and {setting}.tolerance"
    )


def _deepest(config: ModelConfig, target: float, cost: Cost) -> int:
    """The most layers at or below ``target``; the fewest possible when all are above it."""
    deepest, num_layers = 0, 1
    while True:
        deeper = replace(config, num_layers=num_layers)
        if _is_valid(deeper):
            if deepest and cost(deeper) > target:
                return deepest
            deepest = num_layers
        elif num_layers > config.num_layers:
            return deepest
        num_layers += 1


def _solve_width(
    config: ModelConfig, target: float, cost: Cost, tolerance: float
) -> tuple[ModelConfig, float] | None:
    """``config`` with the best ``mlp_dim`` (cost is linear in it); None where there is none."""
    if not _is_valid(config):
        return None
    narrow, wider = (cost(replace(config, mlp_dim=width)) for width in (1, 2))
    exact = 1 + (target - narrow) / (wider - narrow)
    solved = None
    for unit in (8, 1):
        shape = replace(config, mlp_dim=round(exact / unit) * unit)
        if shape.mlp_dim >= 1:
            solved = shape, cost(shape) / target - 1
            if abs(solved[1]) <= tolerance:  # odd widths are slow on matrix units
                break
    return solved


def _is_valid(config: ModelConfig) -> bool:
    try:
        validate_model(config)
    except ValueError:
        return False
    return True
