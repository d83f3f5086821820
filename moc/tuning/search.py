"""Which points an arm is tried at, and which trials go on: Optuna's samplers and pruner.

Optuna is asked and told in the process that ``moc tune`` is, in an order that the study's file
fixes, from a seed. So after a kill the same questions bring the same points, and there is nothing
to keep of it but the trials themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moc.config.identity import config_hash
from moc.config.schema import ArmConfig
from moc.config.tuning import TuningConfig, interval_of
from moc.errors import ConfigError
from moc.plan.axes import Point, at, axes_of, ends, is_whole
from moc.ranges import check_ranges

_DIGITS = 5  # of a point drawn from a range: all that matters, and another processor's are the same


class Search:
    """Of one arm.

    Args:
        name: of the arm; with the tuning seeds it decides what is drawn.

    Raises:
        ConfigError: if Optuna is not installed, or an axis is no setting that can be drawn.
    """

    def __init__(self, tuning: TuningConfig, name: str, arm: ArmConfig) -> None:
        try:
            import optuna
        except ImportError as error:
            raise ConfigError(
                f"tuning.sampler {tuning.sampler} needs Optuna: pip install optuna, or set "
                "tuning.sampler to grid"
            ) from error
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._reduction = tuning.reduction
        self._axes = axes_of(arm, tuning.axes)
        self._space = {
            axis: _distribution(optuna.distributions, values, whole=is_whole(arm, axis))
            if isinstance(values, dict)
            # by number, as a value may be anything
            else optuna.distributions.CategoricalDistribution(range(len(values)))
            for axis, values in self._axes.items()
        }
        for axis, values in self._axes.items():
            for end in ends(values):
                try:
                    check_ranges(at(arm, {axis: end}), f"arms.{name}")
                except ValueError as error:
                    raise ConfigError(f"tuning.axes.{axis}: {error}") from error
        seed = int(config_hash(tuning.seeds, name)[:8], 16)
        samplers = {
            "random": optuna.samplers.RandomSampler,
            # told of a batch at a time: those under way count as bad, or all would lie together
            "tpe": lambda seed: optuna.samplers.TPESampler(seed=seed, constant_liar=True),
        }
        pruners: dict[str, Any] = {
            "none": optuna.pruners.NopPruner(),
            # rung k is told as step reduction**k; the end would be the last
            "asha": optuna.pruners.SuccessiveHalvingPruner(
                min_resource=1, reduction_factor=tuning.reduction
            ),
        }
        self._pruned = optuna.trial.TrialState.PRUNED
        self._study = optuna.create_study(
            sampler=samplers[tuning.sampler](seed=seed), pruner=pruners[tuning.pruner]
        )
        self._trials: list[Any] = []

    def ask(self) -> Point:
        """Where the next trial lies, on the axes that change anything of the arm; trials are
        numbered in this order."""
        trial = self._study.ask(self._space)
        self._trials.append(trial)
        return {axis: self._value(axis, drawn) for axis, drawn in trial.params.items()}

    def prunes(self, number: int, rung: int, metric: float) -> bool:
        """Whether trial ``number``, which has come to ``metric`` at ``rung``, ends there: it is not
        among the best 1/reduction of those that were told of that rung until now."""
        self._trials[number].report(metric, self._reduction**rung)
        return self._trials[number].should_prune()

    def tell(self, number: int, metric: float) -> None:
        """At its end; infinite if training diverged."""
        self._study.tell(self._trials[number], metric)

    def tell_pruned(self, number: int, metrics: Mapping[int, float]) -> None:
        """
        Args:
            metrics: by rung, if it is not among those that ``prunes`` was asked about.
        """
        for rung, metric in metrics.items():
            self._trials[number].report(metric, self._reduction**rung)
        self._study.tell(self._trials[number], state=self._pruned)

    def _value(self, axis: str, drawn: Any) -> Any:
        values = self._axes[axis]
        interval = interval_of(values)
        if interval is None:
            return values[drawn]
        if isinstance(drawn, int):
            return drawn
        rounded = float(f"{drawn:.{_DIGITS}g}")
        return min(max(rounded, float(interval.low)), float(interval.high))


def _distribution(distributions: Any, values: Mapping[str, Any], *, whole: bool) -> Any:
    interval = interval_of(values)
    assert interval is not None
    low, high, log = interval
    if not whole:
        return distributions.FloatDistribution(float(low), float(high), log=log)
    if (low, high) != (int(low), int(high)):
        raise ConfigError(
            f"tuning.axes: a range from {low} to {high} is of a setting that takes whole numbers"
        )
    return distributions.IntDistribution(int(low), int(high), log=log)
