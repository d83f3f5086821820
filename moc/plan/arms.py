"""What every arm turns out to be: its solved shape, its data, its FLOPs per token, its batch on a
device."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from moc.config.schema import (
    ArmConfig,
    IsoParamConfig,
    PhaseConfig,
    StudyConfig,
    TrainerConfig,
)
from moc.errors import ConfigError
from moc.model.config import ModelConfig
from moc.plan.flops import hardware_train_flops_per_token, paper_forward_flops, parameter_counts
from moc.plan.iso_flop import solve_shape
from moc.plan.mixtures import resolve_mixtures

Accounting = Literal["paper", "hardware"]

MICRO_BATCH_TOKENS = 8192  # at most, of a phase that does not set micro_batch


@dataclass(frozen=True)
class Match:
    """What an arm is to have in common with another one."""

    setting: Literal["iso_flop", "iso_param"]
    config: IsoParamConfig
    what: str  # is compared, in words
    unit: str
    cost: Callable[[ArmConfig], float]


def match_of(study: StudyConfig, arm: ArmConfig) -> Match | None:
    """What ``arm`` is matched by; None if it stands for itself."""
    if (flop := arm.iso_flop) is not None:
        return Match(
            "iso_flop",
            flop,
            "training FLOPs per token",
            "FLOPs per token",
            lambda other: train_flops_per_token(study, other, flop.accounting),
        )
    if arm.iso_param is not None:
        return Match(
            "iso_param",
            arm.iso_param,
            "parameters",
            "parameters",
            lambda other: parameter_counts(other.model).total,
        )
    return None


def resolve_arms(study: StudyConfig) -> dict[str, ArmConfig]:
    """The study's arms, in order, with the shapes that the solver chose and the mixtures that
    ``replay`` and ``joint`` mean.

    Raises:
        ConfigError: if targets go round in a circle, or a shape cannot be found.
    """
    resolved: dict[str, ArmConfig] = {}
    for name in study.arms:
        _resolve_arm(study, name, resolved, ())
    return {name: resolved[name] for name in study.arms}


def solved_arms(study: StudyConfig) -> dict[str, ArmConfig]:
    """``resolve_arms``, with nothing left to solve: loading the result again changes nothing."""
    return {
        name: replace(
            arm,
            iso_flop=arm.iso_flop and replace(arm.iso_flop, solve=False),
            iso_param=arm.iso_param and replace(arm.iso_param, solve=False),
        )
        for name, arm in resolve_arms(study).items()
    }


def train_flops_per_token(study: StudyConfig, arm: ArmConfig, accounting: Accounting) -> float:
    """Forward and backward FLOPs per token, averaged over the tokens of the arm's phases."""
    total, tokens = 0.0, 0
    for phase in arm.phases.values():
        length = phase.context_length
        if accounting == "paper":
            per_token = 3 * paper_forward_flops(arm.model, length) / length
        else:
            # one device: a shape must not depend on how many machines happen to be at hand
            size, _ = micro_batch(phase, 1)
            per_token = hardware_train_flops_per_token(
                arm.model, length, size, gpu=study.trainer.accelerator == "gpu"
            )
        phase_tokens = phase.num_steps() * phase.tokens_per_step
        total += phase_tokens * per_token
        tokens += phase_tokens
    return total / tokens


def world_size(trainer: TrainerConfig) -> int:
    """Devices over all nodes; one per node where the study leaves the number open."""
    return (trainer.devices or 1) * trainer.num_nodes


def micro_batch(phase: PhaseConfig, num_devices: int) -> tuple[int, int]:
    """Sequences per device and forward pass, and how many such passes make one step.

    Raises:
        ConfigError: if ``tokens_per_step`` does not split evenly.
    """
    length = phase.context_length
    num_sequences = phase.tokens_per_step // length
    if num_sequences % num_devices:
        raise ConfigError(
            f"tokens_per_step {phase.tokens_per_step} is {num_sequences} sequences of {length}, "
            f"which {num_devices} devices cannot share equally; "
            f"use a multiple of {num_devices * length} tokens"
        )
    share = num_sequences // num_devices
    small = [size for size in range(1, math.isqrt(share) + 1) if share % size == 0]
    divisors = [*small, *(share // size for size in reversed(small))]
    size = phase.micro_batch
    if size is None:
        size = max(n for n in divisors if n == 1 or n * length <= MICRO_BATCH_TOKENS)
    elif size not in divisors:
        near = min(divisors, key=lambda n: abs(n - size))
        raise ConfigError(
            f"micro_batch {size} does not divide the {share} sequences of a step per device; "
            f"use {near}, or null to choose it automatically"
        )
    return size, share // size


def phase_batch(name: str, phase: PhaseConfig, trainer: TrainerConfig) -> tuple[int, int]:
    """``micro_batch`` on the trainer's devices; its error names the phase."""
    try:
        return micro_batch(phase, world_size(trainer))
    except ConfigError as error:
        raise ConfigError(f"phases.{name}: {error}") from error


def _resolve_arm(
    study: StudyConfig, name: str, resolved: dict[str, ArmConfig], above: Sequence[str]
) -> ArmConfig:
    if name in resolved:
        return resolved[name]
    arm = study.arms[name]
    match = match_of(study, arm)
    if match is not None:
        if name in above:
            circle = " -> ".join([*above, name])
            raise ConfigError(
                f"arms.{name}.{match.setting}.target goes round in a circle: {circle}"
            )
        target = _resolve_arm(study, match.config.target, resolved, (*above, name))
        if match.config.solve:
            arm = _solve_arm(name, arm, match, target)
    resolved[name] = resolve_mixtures(arm)
    return resolved[name]


def _solve_arm(name: str, arm: ArmConfig, match: Match, target: ArmConfig) -> ArmConfig:
    def cost(model: ModelConfig) -> float:
        return match.cost(replace(arm, model=model))

    try:
        model, _ = solve_shape(
            arm.model,
            match.cost(target),
            cost,
            tolerance=match.config.tolerance,
            unit=match.unit,
            setting=match.setting,
        )
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"arms.{name}: {error}") from error
    return replace(arm, model=model)
