"""The ``tuning:`` section of a study: what ``moc tune`` tries for every arm, and on what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, NamedTuple

from moc.errors import ConfigError, nearest
from moc.ranges import Range


@dataclass
class TuningConfig:
    """Every arm trains once per trial and seed, on ``budget`` of its tokens."""

    # setting of an arm (phases.facts.optimizer.beta2; phases.*. for all of them) -> values to try,
    # or a range {low: 0.1, high: 10, log: true}. lr_scale multiplies all learning rates,
    # lr_scale.backbone, .memory_layers, .bank those of one group
    axes: dict[str, Any] = field(default_factory=dict)
    # of a ladder: trials at this size alone, whose choice all sizes of an arm take; null: at each
    size: str | None = None
    # grid: every combination of values; random and tpe are Optuna's (pip install optuna),
    # and take ranges
    sampler: Literal["grid", "random", "tpe"] = "grid"
    # of every arm, whatever axes it has; of a grid, there are as many as there are combinations
    trials: Annotated[int, Range(1, 10**6)] = 30
    # of every arm at a time: a sampler draws so many before it is told what came of any. Results
    # depend on it, but neither on how many run at once nor on where they were interrupted
    batch: Annotated[int, Range(1, 10**4)] = 6
    # asha, of a sampler: a trial pauses at ``rungs`` shares of its tokens, 1/reduction of the next
    # each, and goes on if it is among the best 1/reduction of its arm's trials there so far
    pruner: Literal["none", "asha"] = "none"
    reduction: Annotated[int, Range(2, 100)] = 3
    rungs: Annotated[int, Range(1, 10)] = 2
    # none of the study's own: what was chosen on a seed looks better there than elsewhere
    seeds: Annotated[list[int], Range(-(2**31), 2**32 - 1)] = field(default_factory=lambda: [1000])
    # share of each phase's tokens that a trial trains on, the same for every arm
    budget: Annotated[float, Range(0, 1, without="low")] = 0.5
    # share of the training documents that trials leave out, and are chosen by the loss on: the
    # comparison trains on them, and is scored on its own validation text
    hold_out: Annotated[float, Range(0, 0.5, without="low")] = 0.05

    def shares(self) -> list[float]:
        """Of a trial's tokens, at which it may be pruned, rising."""
        if self.pruner == "none":
            return []
        return [float(self.reduction) ** (rung - self.rungs) for rung in range(self.rungs)]


class Interval(NamedTuple):
    """An axis that is a range, both ends included."""

    low: float
    high: float
    log: bool = False  # drawn evenly on a logarithmic scale


def interval_of(values: Any) -> Interval | None:
    """None for an axis of values."""
    return Interval(**values) if isinstance(values, dict) else None


def check_tuning(tuning: TuningConfig, sizes: Sequence[str | None]) -> None:
    """
    Args:
        sizes: of the arms.

    Raises:
        ConfigError: for axes that are neither values nor ranges, or that the sampler cannot take.
    """
    if not tuning.seeds:
        raise ConfigError("tuning.seeds is empty; a trial needs at least one")
    if tuning.pruner != "none" and tuning.sampler == "grid":
        raise ConfigError(
            f"tuning.pruner {tuning.pruner} goes with a sampler, not with a grid; set "
            "tuning.sampler to tpe or random, or tuning.pruner to none"
        )
    if tuning.size is not None and tuning.size not in sizes:
        known = [size for size in dict.fromkeys(sizes) if size is not None]
        raise ConfigError(f"tuning.size: no size {tuning.size!r}; {nearest(tuning.size, known)}")
    for axis, values in tuning.axes.items():
        _check_axis(f"tuning.axes.{axis}", values, tuning.sampler)


def _check_axis(where: str, values: Any, sampler: str) -> None:
    if isinstance(values, list):
        if not values:
            raise ConfigError(f"{where} has no values; list some, or remove it")
        return
    example = "such as {low: 0.1, high: 10, log: true}"
    if not isinstance(values, dict):
        given = repr(values)[:50]
        raise ConfigError(f"{where} takes a list of values, or a range {example}, not {given}")
    for key in values:
        if key not in Interval._fields:
            hint = nearest(str(key), list(Interval._fields))
            raise ConfigError(f"{where}: a range has no {str(key)[:50]!r}; {hint}")
    if not {"low", "high"} <= values.keys():
        raise ConfigError(f"{where}: a range has low and high, {example}")
    low, high, log = (values.get(key, False) for key in Interval._fields)
    numbers = [one for one in (low, high) if type(one) in (int, float) and abs(one) < 1e15]
    if len(numbers) < 2 or not low < high:
        given = ", ".join(repr(one)[:20] for one in (low, high))
        raise ConfigError(f"{where}: low and high are numbers, the lower first, not {given}")
    if not isinstance(log, bool):
        raise ConfigError(f"{where}.log is true or false, not {log!r}")
    if log and low <= 0:
        raise ConfigError(f"{where}: a logarithmic range begins above 0, not at {low}")
    if sampler == "grid":
        raise ConfigError(
            f"{where} is a range, which a grid has no points of; list its values, or set "
            "tuning.sampler to tpe or random"
        )
