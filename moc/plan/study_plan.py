"""What a study will cost before it starts: parameters, FLOPs, steps, memory, checkpoints.

``moc.plan.text`` writes it for a terminal.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from moc.config.schema import ArmConfig, IsoFlopConfig, PhaseConfig, StudyConfig
from moc.model.config import ModelConfig
from moc.model.memory.build import build_memory, is_causal, routing_scope
from moc.plan.activations import activation_bytes
from moc.plan.arms import (
    match_of,
    micro_batch,
    phase_batch,
    resolve_arms,
    train_flops_per_token,
    world_size,
)
from moc.plan.bank_traffic import BankTraffic, bank_traffic
from moc.plan.flops import Parameters, paper_forward_flops, parameter_counts
from moc.plan.memories import memory_of

__all__ = [
    "ArmPlan",
    "MatchPlan",
    "PhasePlan",
    "StudyPlan",
    "micro_batch",
    "plan_study",
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
class MatchPlan:
    """How near an arm comes to the one that it is matched to, by FLOPs or by parameters."""

    target: str
    what: str  # is compared
    relative_error: float
    tolerance: float
    accounting: str | None  # of FLOPs
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
    iso_flop: MatchPlan | None
    iso_param: MatchPlan | None
    phases: dict[str, PhasePlan]
    state_bytes: int  # weights, gradients and Adam moments
    activation_bytes: int  # a rough estimate, of the phase that needs most
    checkpoint_bytes: int  # to resume from; a boundary's weights are 4 bytes per parameter
    bank_traffic: BankTraffic | None  # under fsdp with memory, of the phase that fetches most

    @property
    def tokens(self) -> int:
        return sum(phase.tokens for phase in self.phases.values())

    @property
    def paper_train_flops(self) -> float:
        return self.tokens * self.paper_train_flops_per_token

    def num_parameters(self) -> dict[str, int]:
        """Numbers of parameters, by what the plan calls them."""
        return {
            "total": self.parameters.total,
            "trainable": self.trainable,
            "backbone": self.parameters.backbone,
            "memory_layers": self.parameters.memory_layers,
            "bank": self.parameters.bank,
        }


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
    """The plan of every arm, with iso-FLOP and iso-parameter shapes solved.

    Raises:
        ConfigError: for a batch that the devices cannot share, or an unsolvable arm.
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
    """One line for each matched arm beyond its tolerance."""
    return [
        f"{name}: {match.what} are {match.relative_error:+.2%} off {match.target}'s, more than the "
        f"tolerance of {match.tolerance:.2%}; set arms.{name}.{setting}.solve=true, or change its "
        "model or tolerance"
        for name, arm in plan.arms.items()
        for setting, match in (("iso_flop", arm.iso_flop), ("iso_param", arm.iso_param))
        if match is not None and not match.within_tolerance
    ]


def _plan_arm(study: StudyConfig, arms: dict[str, ArmConfig], name: str) -> ArmPlan:
    arm = arms[name]
    parameters = parameter_counts(arm.model)
    trainable = [_trainable(arm.model, parameters, phase) for phase in arm.phases.values()]
    phases = {}
    for key, phase in arm.phases.items():
        size, accumulation = phase_batch(key, phase, study.trainer)
        steps = phase.num_steps()
        phases[key] = PhasePlan(
            steps, steps * phase.tokens_per_step, phase.context_length, size, accumulation
        )
    bf16 = study.trainer.precision == "bf16-mixed"
    sharded = study.trainer.strategy == "fsdp"
    shards = world_size(study.trainer) if sharded else 1
    traffic = [bank_traffic(arm.model, p.context_length, p.micro_batch) for p in phases.values()]
    return ArmPlan(
        model=arm.model,
        parameters=parameters,
        trainable=trainable[0],
        paper_forward_flops=paper_forward_flops(
            arm.model, next(iter(phases.values())).context_length
        ),
        paper_train_flops_per_token=train_flops_per_token(study, arm, "paper"),
        hardware_train_flops_per_token=train_flops_per_token(study, arm, "hardware"),
        iso_flop=_plan_match(study, arms, name, "iso_flop"),
        iso_param=_plan_match(study, arms, name, "iso_param"),
        phases=phases,
        # float32 weights; gradients and two Adam moments for what trains
        state_bytes=(4 * parameters.total + 12 * max(trainable)) // shards,
        activation_bytes=max(
            activation_bytes(arm.model, phase.context_length, phase.micro_batch, bf16=bf16)
            for phase in phases.values()
        ),
        checkpoint_bytes=4 * parameters.total + 8 * max(trainable) + MANIFEST_BYTES,
        bank_traffic=max(
            (moved for moved in traffic if moved is not None and sharded),
            key=lambda moved: moved.fetched_rows,
            default=None,
        ),
    )


def _plan_match(
    study: StudyConfig, arms: dict[str, ArmConfig], name: str, setting: str
) -> MatchPlan | None:
    match = match_of(study, arms[name])
    if match is None or match.setting != setting:
        return None
    iso = match.config
    return MatchPlan(
        target=iso.target,
        what=match.what,
        relative_error=match.cost(arms[name]) / match.cost(arms[iso.target]) - 1,
        tolerance=iso.tolerance,
        accounting=iso.accounting if isinstance(iso, IsoFlopConfig) else None,
        original=study.arms[name].model if iso.solve else None,
    )


def _trainable(model: ModelConfig, parameters: Parameters, phase: PhaseConfig) -> int:
    groups = phase.optimizer
    layers = parameters.memory_layers
    if model.memory is not None:
        layers -= len(model.memory_layers()) * build_memory(model).fixed_parameters()
    return (
        parameters.backbone * (not groups.backbone.freeze)
        + layers * (not groups.memory_layers.freeze)
        + parameters.bank * (not groups.bank.freeze)
    )


def _arm_json(arm: ArmPlan) -> dict[str, Any]:
    phases = arm.phases.items()
    return {
        "memory": memory_of(arm.model),
        "scope": routing_scope(arm.model),
        "causal": is_causal(arm.model),
        "parameters": arm.num_parameters(),
        "flops": {
            "paper_forward_per_sequence": arm.paper_forward_flops,
            "hardware_train_per_token": arm.hardware_train_flops_per_token,
            "paper_train": {name: _paper_train_flops(arm, phase) for name, phase in phases},
        },
        "iso_flop": _match_json(arm.iso_flop),
        "iso_param": _match_json(arm.iso_param),
        "steps": {name: phase.num_steps for name, phase in phases},
        "state_bytes": arm.state_bytes,
        "activation_bytes": arm.activation_bytes,
        **({"bank_traffic": _traffic_json(arm.bank_traffic)} if arm.bank_traffic else {}),
    }


def _paper_train_flops(arm: ArmPlan, phase: PhasePlan) -> float:
    """Forward and backward, of all tokens of ``phase``."""
    length = phase.context_length
    return 3 * paper_forward_flops(arm.model, length) * phase.tokens / length


def _traffic_json(traffic: BankTraffic) -> dict[str, Any]:
    return {
        "fetched_rows": traffic.fetched_rows,
        "fetched_bytes": traffic.fetched_rows * traffic.row_bytes,
        "gathered_rows": traffic.gathered_rows,
        "gathered_bytes": traffic.gathered_rows * traffic.row_bytes,
        "fetching_moves_less": traffic.fetching_moves_less,
    }


def _match_json(match: MatchPlan | None) -> dict[str, Any]:
    return {
        "target": match.target if match else None,
        "relative_error": match.relative_error if match else None,
    }
