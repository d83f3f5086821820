"""The study that ``moc tune`` runs: every arm once per point of the grid, on a part of its tokens.

A trial is an arm of that study, so that all that holds of runs (locks, checkpoints, launchers,
resuming, tracking) holds of trials.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

from moc.config.identity import config_hash
from moc.config.schema import (
    ArmConfig,
    ControlConfig,
    EvalConfig,
    InPhaseConfig,
    OptimizerConfig,
    PhaseConfig,
    StudyConfig,
)
from moc.config.tuning import TuningConfig
from moc.errors import ConfigError, nearest
from moc.plan.arms import solved_arms, train_flops_per_token

Point = dict[str, Any]  # axis -> value

LR_SCALE = "lr_scale"
GROUPS = ("backbone", "memory_layers", "bank")
END = "-tuning"  # of the name of the study of trials
_COST_TOLERANCE = 0.005  # as of iso_flop


@dataclass(frozen=True)
class Trial:
    arm: str
    point: Point


def tuning_of(study: StudyConfig) -> TuningConfig:
    """
    Raises:
        ConfigError: if the study says nothing of tuning.
    """
    if study.tuning is None or not study.tuning.axes:
        raise ConfigError(
            "this study has no tuning.axes; name what to try, such as "
            "tuning: {axes: {lr_scale: [0.3, 1, 3]}}"
        )
    return study.tuning


def trials_of(study: StudyConfig) -> dict[str, Trial]:
    """By the name that the trial's arm has. A point that changes nothing of an arm against an
    earlier one (another rate for the bank of a dense arm) is left out.

    Raises:
        ConfigError: for an axis that is no setting of the arms, or changes what they cost.
    """
    found: dict[str, Trial] = {}
    for name, arm in solved_arms(study).items():
        for point, _ in _points(study, name, arm):
            found[trial_name(name, point)] = Trial(name, point)
    return found


def tuning_study(study: StudyConfig) -> StudyConfig:
    """The study of trials, resolved as far as shapes go.

    It has seeds of its own; of the training documents a part is left out and stands for the
    validation text, so that neither is what the comparison is made on.

    Raises:
        ConfigError: as ``trials_of``, or if a seed is one of the comparison's.
    """
    tuning = tuning_of(study)
    if shared := set(tuning.seeds) & set(study.seeds):
        raise ConfigError(
            f"tuning.seeds and seeds share {min(shared)}: what was chosen on a seed looks better "
            "there; give tuning other seeds"
        )
    arms = {}
    for name, arm in solved_arms(study).items():
        for point, changed in _points(study, name, arm):
            arms[trial_name(name, point)] = replace(
                changed,
                description=", ".join(f"{axis} {value}" for axis, value in point.items()),
                iso_flop=None,
                iso_param=None,
                phases=_shortened(changed.phases, tuning.budget),
            )
    return replace(
        study,
        name=f"{study.name}{END}",
        description=f"trials of {study.name}: {', '.join(tuning.axes)}",
        seeds=list(tuning.seeds),
        data={name: replace(one, hold_out=tuning.hold_out) for name, one in study.data.items()},
        phases=_shortened(study.phases, tuning.budget),
        arms=arms,
        evals=EvalConfig(
            context_length=study.evals.context_length,
            batch_size=study.evals.batch_size,
            validation_tokens=study.evals.validation_tokens,
            leakage_windows=0,
            controls=ControlConfig(knockouts=[], bank_swap=[]),
            in_phase=InPhaseConfig(every_tokens=0),
        ),
        probes={},
        tuning=None,
        tuned=None,
    )


def trial_name(arm: str, point: Point) -> str:
    """Of the trial's arm; another value on an axis leaves the other trials their names."""
    return f"{arm}-{config_hash(point)[:6]}"


def at(arm: ArmConfig, point: Point) -> ArmConfig:
    """``arm`` with the settings of ``point``.

    Raises:
        ConfigError: for an axis that is no setting of an arm.
    """
    changed = deepcopy(arm)
    for axis, value in point.items():
        head, _, group = axis.partition(".")
        if head == LR_SCALE:
            _scale(changed, group, value)
        else:
            _put(changed, axis.split("."), value, axis)
    return changed


def _points(study: StudyConfig, name: str, arm: ArmConfig) -> Iterator[tuple[Point, ArmConfig]]:
    axes = tuning_of(study).axes
    seen: list[ArmConfig] = []
    cost = train_flops_per_token(study, arm, "paper")
    for values in itertools.product(*axes.values()):
        point = dict(zip(axes, values, strict=True))
        changed = at(arm, point)
        relevant = _relevant(changed)
        if relevant in seen:
            continue
        seen.append(relevant)
        deviation = train_flops_per_token(study, changed, "paper") / cost - 1
        if abs(deviation) > _COST_TOLERANCE:
            raise ConfigError(
                f"tuning.axes: {point} changes what a token costs arms.{name} by {deviation:+.1%}; "
                "tune what leaves the cost alone, or make it another arm"
            )
        yield point, changed


def _relevant(arm: ArmConfig) -> ArmConfig:
    """``arm`` without the optimizer of what it does not have."""
    if arm.model.memory is not None:
        return arm
    plain = OptimizerConfig()
    optimizers = {
        name: replace(phase.optimizer, memory_layers=plain.memory_layers, bank=plain.bank)
        for name, phase in arm.phases.items()
    }
    phases = {name: replace(p, optimizer=optimizers[name]) for name, p in arm.phases.items()}
    return replace(arm, phases=phases)


def _shortened(phases: dict[str, PhaseConfig], budget: float) -> dict[str, PhaseConfig]:
    """At least a step of each; warm-up shrinks with the rest of the schedule."""
    return {
        name: replace(
            phase,
            tokens=max(1, round(phase.num_steps() * budget)) * phase.tokens_per_step,
            schedule=replace(
                phase.schedule, warmup_steps=round(phase.schedule.warmup_steps * budget)
            ),
        )
        for name, phase in phases.items()
    }


def _scale(arm: ArmConfig, group: str, factor: float) -> None:
    if group and group not in GROUPS:
        raise ConfigError(f"tuning.axes: no group {group!r}; {nearest(group, GROUPS)}")
    for phase in arm.phases.values():
        for name in [group] if group else GROUPS:
            config = getattr(phase.optimizer, name)
            config.lr = config.lr * factor


def _put(tree: Any, keys: list[str], value: Any, axis: str) -> None:
    key, *below = keys
    if isinstance(tree, dict):
        names, get = list(tree), tree.__getitem__
    elif is_dataclass(tree):
        names = [f.name for f in fields(tree)]
        get = lambda name: getattr(tree, name)  # noqa: E731
    else:
        return  # of an arm that has no such part
    if key == "*":
        for name in names:
            _put(get(name), below, value, axis)
        return
    if key not in names:
        raise ConfigError(f"tuning.axes: {axis}: no {key!r} in an arm; {nearest(key, names)}")
    if below:
        _put(get(key), below, value, axis)
        return
    # YAML writes 1 for 1.0
    value = float(value) if isinstance(get(key), float) and type(value) is int else value
    if isinstance(tree, dict):
        tree[key] = value
    else:
        setattr(tree, key, value)
