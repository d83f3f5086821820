"""The study that ``moc tune`` runs: every arm once per trial, on a part of its tokens.

A trial is an arm of that study, so that all that holds of runs (locks, checkpoints, launchers,
resuming, tracking) holds of trials.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace

from moc.config.identity import config_hash
from moc.config.schema import (
    ArmConfig,
    ControlConfig,
    EvalConfig,
    InPhaseConfig,
    PhaseConfig,
    StudyConfig,
)
from moc.config.tuning import TuningConfig
from moc.errors import ConfigError
from moc.plan.arms import solved_arms, train_flops_per_token
from moc.plan.axes import Point, at, relevant

END = "-tuning"  # of the name of the study of trials
_COST_TOLERANCE = 0.005  # as of iso_flop


@dataclass(frozen=True)
class Trial:
    arm: str
    point: Point


Trials = Mapping[str, Trial]  # by the name that the trial's arm has


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


def at_one_size(study: StudyConfig) -> StudyConfig:
    """``study`` with the arms whose trials are to be made: those of ``tuning.size``."""
    size = tuning_of(study).size
    if size is None:
        return study
    return replace(study, arms={n: arm for n, arm in study.arms.items() if arm.size == size})


def grid_of(study: StudyConfig) -> dict[str, Trial]:
    """Every arm at every point of the grid. A point that changes nothing of an arm against an
    earlier one (another rate for the bank of a dense arm) is left out.

    Raises:
        ConfigError: for an axis that is no setting of the arms.
    """
    axes = tuning_of(study).axes
    found: dict[str, Trial] = {}
    for name, arm in solved_arms(study).items():
        seen: list[ArmConfig] = []
        for values in itertools.product(*axes.values()):
            point = dict(zip(axes, values, strict=True))
            changed = relevant(at(arm, point))
            if changed not in seen:
                seen.append(changed)
                found[trial_name(name, point)] = Trial(name, point)
    return found


def tuning_study(study: StudyConfig, trials: Trials) -> StudyConfig:
    """The study of ``trials``, resolved as far as shapes go.

    It has seeds of its own; of the training documents a part is left out and stands for the
    validation text, so that neither is what the comparison is made on.

    Raises:
        ConfigError: for an axis that is no setting of the arms, or changes what they cost or how
            much they read; if a seed is one of the comparison's.
    """
    tuning = tuning_of(study)
    if shared := set(tuning.seeds) & set(study.seeds):
        raise ConfigError(
            f"tuning.seeds and seeds share {min(shared)}: what was chosen on a seed looks better "
            "there; give tuning other seeds"
        )
    solved = solved_arms(study)
    arms = {}
    for name, trial in trials.items():
        changed = at(solved[trial.arm], trial.point)
        _check_cost(study, trial, solved[trial.arm], changed)
        arms[name] = replace(
            changed,
            description=", ".join(f"{axis} {value}" for axis, value in trial.point.items()),
            iso_flop=None,
            iso_param=None,
            size=None,
            twin_of=None,
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
            knowledge_items=0,
            leakage_windows=0,
            controls=ControlConfig(knockouts=[], bank_swap=[]),
            in_phase=InPhaseConfig(every_tokens=0),
        ),
        probes={},
        assay=None,
        tuning=None,
        tuned=None,
    )


def trial_name(arm: str, point: Point, digits: int = 6) -> str:
    """Of the trial's arm; another value on an axis leaves the other trials their names."""
    return f"{arm}-{config_hash(point)[:digits]}"


def _check_cost(study: StudyConfig, trial: Trial, arm: ArmConfig, changed: ArmConfig) -> None:
    where = f"tuning.axes: {trial.point} changes"
    remedy = "tune what leaves the cost alone, or make it another arm"
    deviation = _num_tokens(changed) / _num_tokens(arm) - 1
    if abs(deviation) > _COST_TOLERANCE:
        raise ConfigError(
            f"{where} on how many tokens arms.{trial.arm} trains by {deviation:+.1%}; {remedy}"
        )
    cost = train_flops_per_token(study, arm, "paper")
    deviation = train_flops_per_token(study, changed, "paper") / cost - 1
    if abs(deviation) > _COST_TOLERANCE:
        raise ConfigError(
            f"{where} what a token costs arms.{trial.arm} by {deviation:+.1%}; {remedy}"
        )
    # A source's cache, and so the order of all that is drawn from it, is as long as what any arm
    # reads of it: a trial that joins the study later must not change that.
    if tuning_of(study).sampler != "grid" and _reads(changed) != _reads(arm):
        raise ConfigError(
            f"{where} what arms.{trial.arm} reads in a step or a phase, which a sampler cannot "
            "try; list values and set tuning.sampler to grid, or make it another arm"
        )


def _reads(arm: ArmConfig) -> list[tuple[object, ...]]:
    return [
        (phase.num_steps(), phase.tokens_per_step, phase.context_length, phase.mixture)
        for phase in arm.phases.values()
    ]


def _num_tokens(arm: ArmConfig) -> int:
    return sum(phase.num_steps() * phase.tokens_per_step for phase in arm.phases.values())


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
