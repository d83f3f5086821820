"""What a study will cost before it starts: parameters, FLOPs, steps, memory, checkpoints."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from moc.arms import (
    Accounting,
    micro_batch,
    phase_batch,
    resolve_arms,
    train_flops_per_token,
    world_size,
)
from moc.config import ArmConfig, PhaseConfig, StudyConfig
from moc.flops import Parameters, activation_bytes, paper_forward_flops, parameter_counts
from moc.model.config import ModelConfig
from moc.text import human, table

__all__ = [
    "ArmPlan",
    "IsoFlopPlan",
    "PhasePlan",
    "StudyPlan",
    "micro_batch",
    "plan_study",
    "render_plan",
    "resolve_arms",
    "violations",
]

MANIFEST_BYTES = 4096


@dataclass(frozen=True)
class PhasePlan:
    num_steps: int
    tokens: int  # num_steps * tokens_per_step, at most the budget
    context_length: int
    micro_batch: int  # sequences per device and forward
    accumulation: int  # micro-batches per step and device


@dataclass(frozen=True)
class IsoFlopPlan:
    target: str
    relative_error: float  # of the training FLOPs per token, in ``accounting``
    tolerance: float
    accounting: Accounting
    original: ModelConfig | None  # the shape the solver started from; None: only checked

    @property
    def within_tolerance(self) -> bool:
        return abs(self.relative_error) <= self.tolerance


@dataclass(frozen=True)
class ArmPlan:
    """One arm, for one seed. Bytes are per device."""

    model: ModelConfig
    parameters: Parameters
    trainable: int  # in the first phase
    paper_forward_flops: int  # one sequence at the first phase's context length
    paper_train_flops_per_token: float  # averaged over the phases' tokens, like the next
    hardware_train_flops_per_token: float
    iso_flop: IsoFlopPlan | None
    phases: dict[str, PhasePlan]
    state_bytes: int  # weights, gradients and Adam moments
    activation_bytes: int  # a rough estimate, of the phase that needs most
    checkpoint_bytes: int  # to resume from; a boundary's weights are 4 bytes per parameter

    @property
    def tokens(self) -> int:
        return sum(phase.tokens for phase in self.phases.values())

    @property
    def paper_train_flops(self) -> float:
        return self.tokens * self.paper_train_flops_per_token


@dataclass(frozen=True)
class StudyPlan:
    study: str
    num_seeds: int
    num_devices: int  # over all nodes
    strategy: str
    precision: str
    arms: dict[str, ArmPlan]

    def to_json(self) -> str:
        """The machine-readable plan, one object."""
        arms = {name: _arm_json(arm) for name, arm in self.arms.items()}
        return json.dumps({"study": self.study, "arms": arms}, indent=2)


def plan_study(study: StudyConfig) -> StudyPlan:
    """The plan of every arm, with iso-FLOP shapes solved.

    Raises:
        ConfigError: for a batch that the devices cannot share, or an unsolvable iso-FLOP arm.
    """
    arms = resolve_arms(study)
    return StudyPlan(
        study=study.name,
        num_seeds=len(study.seeds),
        num_devices=world_size(study.trainer),
        strategy=study.trainer.strategy,
        precision=study.trainer.precision,
        arms={name: _plan_arm(study, arms, name) for name in arms},
    )


def violations(plan: StudyPlan) -> list[str]:
    """One line for each iso-FLOP arm beyond its tolerance."""
    return [
        f"{name}: training FLOPs per token are {arm.iso_flop.relative_error:+.2%} off "
        f"{arm.iso_flop.target}'s, more than the tolerance of {arm.iso_flop.tolerance:.2%}; set "
        f"arms.{name}.iso_flop.solve=true, or change its model or tolerance"
        for name, arm in plan.arms.items()
        if arm.iso_flop is not None and not arm.iso_flop.within_tolerance
    ]


def render_plan(plan: StudyPlan, width: int = 100) -> str:
    """The plan as plain text, for a terminal of ``width`` columns."""
    arms = plan.arms
    total = sum(arm.paper_train_flops for arm in arms.values()) * plan.num_seeds
    lines = [
        f"{plan.study}: {_count(len(arms), 'arm')} x {_count(plan.num_seeds, 'seed')} on "
        f"{_count(plan.num_devices, 'device')} ({plan.strategy}, {plan.precision}), "
        f"{human(total, 'FLOP')} of training"
    ]
    rows = {
        name: [str(arm.model.num_layers), str(arm.model.mlp_dim), _routing(arm.model)]
        for name, arm in arms.items()
    }
    lines += ["", *table(["arm", "layers", "MLP", "routing"], rows, width)]
    rows = {name: [f"{n:,}" for n in _counts(arm).values()] for name, arm in arms.items()}
    header = ["parameters", "total", "trainable", "backbone", "memory layers", "bank"]
    lines += ["", *table(header, rows, width)]
    rows = {
        name: [
            human(arm.paper_forward_flops),
            human(arm.paper_train_flops_per_token),
            human(arm.hardware_train_flops_per_token),
            human(arm.tokens),
            human(arm.paper_train_flops),
        ]
        for name, arm in arms.items()
    }
    header = ["FLOPs", "forward/sequence", "train/token", "(hardware)", "tokens", "train, one seed"]
    lines += ["", *table(header, rows, width), "hardware: products executed, recomputed ones too"]
    header = ["phase", "steps", "tokens", "context", "micro-batch x accumulation x devices"]
    lines += ["", *table(header, _phase_rows(plan), width)]
    rows = {
        name: [
            human(arm.state_bytes, "B"),
            human(arm.activation_bytes, "B"),
            human(arm.checkpoint_bytes, "B"),
            human(4 * arm.parameters.total, "B"),
        ]
        for name, arm in arms.items()
    }
    header = ["bytes", "weights+grads+Adam", "activations, roughly", "checkpoint", "boundary"]
    lines += ["", *table(header, rows, width)]
    notes = [line for name, arm in arms.items() for line in _iso_flop_lines(name, arm)]
    return "\n".join([*lines, "", *notes] if notes else lines)


def _plan_arm(study: StudyConfig, arms: dict[str, ArmConfig], name: str) -> ArmPlan:
    arm = arms[name]
    parameters = parameter_counts(arm.model)
    trainable = [_trainable(parameters, phase) for phase in arm.phases.values()]
    phases = {}
    for key, phase in arm.phases.items():
        size, accumulation = phase_batch(key, phase, study.trainer)
        steps = phase.num_steps()
        phases[key] = PhasePlan(
            steps, steps * phase.tokens_per_step, phase.context_length, size, accumulation
        )
    bf16 = study.trainer.precision == "bf16-mixed"
    shards = world_size(study.trainer) if study.trainer.strategy == "fsdp" else 1
    return ArmPlan(
        model=arm.model,
        parameters=parameters,
        trainable=trainable[0],
        paper_forward_flops=paper_forward_flops(
            arm.model, next(iter(phases.values())).context_length
        ),
        paper_train_flops_per_token=train_flops_per_token(study, arm, "paper"),
        hardware_train_flops_per_token=train_flops_per_token(study, arm, "hardware"),
        iso_flop=_plan_iso_flop(study, arms, name),
        phases=phases,
        # float32 weights; gradients and two Adam moments for what trains
        state_bytes=(4 * parameters.total + 12 * max(trainable)) // shards,
        activation_bytes=max(
            activation_bytes(arm.model, phase.context_length, phase.micro_batch, bf16=bf16)
            for phase in phases.values()
        ),
        checkpoint_bytes=4 * parameters.total + 8 * max(trainable) + MANIFEST_BYTES,
    )


def _plan_iso_flop(study: StudyConfig, arms: dict[str, ArmConfig], name: str) -> IsoFlopPlan | None:
    iso = arms[name].iso_flop
    if iso is None:
        return None
    wanted = train_flops_per_token(study, arms[iso.target], iso.accounting)
    return IsoFlopPlan(
        target=iso.target,
        relative_error=train_flops_per_token(study, arms[name], iso.accounting) / wanted - 1,
        tolerance=iso.tolerance,
        accounting=iso.accounting,
        original=study.arms[name].model if iso.solve else None,
    )


def _trainable(parameters: Parameters, phase: PhaseConfig) -> int:
    groups = phase.optimizer
    return (
        parameters.backbone * (not groups.backbone.freeze)
        + parameters.memory_layers * (not groups.memory_layers.freeze)
        + parameters.bank * (not groups.bank.freeze)
    )


def _counts(arm: ArmPlan) -> dict[str, int]:
    return {
        "total": arm.parameters.total,
        "trainable": arm.trainable,
        "backbone": arm.parameters.backbone,
        "memory_layers": arm.parameters.memory_layers,
        "bank": arm.parameters.bank,
    }


def _arm_json(arm: ArmPlan) -> dict[str, Any]:
    iso = arm.iso_flop
    return {
        "parameters": _counts(arm),
        "flops": {
            "paper_forward_per_sequence": arm.paper_forward_flops,
            "hardware_train_per_token": arm.hardware_train_flops_per_token,
        },
        "iso_flop": {
            "target": iso.target if iso else None,
            "relative_error": iso.relative_error if iso else None,
        },
        "steps": {name: phase.num_steps for name, phase in arm.phases.items()},
    }


def _routing(model: ModelConfig) -> str:
    if model.memory is None:
        return "no memory"
    if model.memory.num_routed is None:
        return "every chapter"
    return f"{model.memory.router.scope} (non-causal)"


def _phase_rows(plan: StudyPlan) -> dict[str, list[str]]:
    """A row per phase, named with its arms where they differ."""
    arms_of: dict[tuple[str, PhasePlan], list[str]] = {}
    for phase_name in next(iter(plan.arms.values())).phases:
        for arm_name, arm in plan.arms.items():
            arms_of.setdefault((phase_name, arm.phases[phase_name]), []).append(arm_name)
    return {
        name if len(arms) == len(plan.arms) else f"{name} ({', '.join(arms)})": [
            f"{phase.num_steps:,}",
            f"{phase.tokens:,}",
            f"{phase.context_length:,}",
            f"{phase.micro_batch} x {phase.accumulation} x {plan.num_devices}",
        ]
        for (name, phase), arms in arms_of.items()
    }


def _iso_flop_lines(name: str, arm: ArmPlan) -> list[str]:
    iso = arm.iso_flop
    if iso is None:
        return []
    lines = [
        f"{name} against {iso.target}: {iso.relative_error:+.2%} training FLOPs per token "
        f"({iso.accounting} accounting), tolerance {iso.tolerance:.2%}: "
        f"{'OK' if iso.within_tolerance else 'OFF'}"
    ]
    if iso.original is not None:
        was, now = iso.original, arm.model
        lines.append(
            f"  the solver chose {now.num_layers} layers (from {was.num_layers}) "
            f"and MLP {now.mlp_dim} (from {was.mlp_dim})"
        )
    return lines


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
