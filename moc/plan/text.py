"""The plan as plain text, for a terminal."""

from __future__ import annotations

from textwrap import wrap

from moc.model.config import ModelConfig
from moc.model.memory.build import is_causal
from moc.plan.bank_traffic import BankTraffic
from moc.plan.memories import memory_of
from moc.plan.study_plan import ArmPlan, PhasePlan, StudyPlan
from moc.text import human, table


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
        name: [str(arm.model.num_layers), str(arm.model.mlp_dim), *_memory(arm.model)]
        for name, arm in arms.items()
    }
    lines += ["", *table(["arm", "layers", "MLP", "memory", "bank", "routing"], rows, width)]
    rows = {name: [f"{n:,}" for n in arm.num_parameters().values()] for name, arm in arms.items()}
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
    notes = [line for name, arm in arms.items() for line in _match_lines(name, arm, width)]
    for name, arm in arms.items():
        if arm.bank_traffic is not None:
            notes += wrap(_traffic(name, arm.bank_traffic), width, subsequent_indent="  ")
    return "\n".join([*lines, "", *notes] if notes else lines)


def _memory(model: ModelConfig) -> list[str]:
    """Kind, bank, and what shares a choice of rows."""
    memory = memory_of(model)
    if memory is None:
        return ["none", "", ""]
    rows = f"{memory['num_rows']:,} x {' x '.join(str(n) for n in memory['row_shape'])}"
    if memory["num_rows"] < memory["num_choices"]:
        rows += f" for {memory['num_choices']:,}"
    words = memory["routing"]
    if words == "none":
        words = f"every {memory['row_name']}"
    return [memory["kind"], rows, words if is_causal(model) else f"{words} (non-causal)"]


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


def _match_lines(name: str, arm: ArmPlan, width: int) -> list[str]:
    match = arm.iso_flop or arm.iso_param
    if match is None:
        return []
    accounting = f" ({match.accounting} accounting)" if match.accounting else ""
    verdict = (
        f"{name} against {match.target}: {match.relative_error:+.2%} {match.what}{accounting}, "
        f"tolerance {match.tolerance:.2%}: {'OK' if match.within_tolerance else 'OFF'}"
    )
    lines = wrap(verdict, width, subsequent_indent="  ")
    if match.original is not None:
        was, now = match.original, arm.model
        lines.append(
            f"  the solver chose {now.num_layers} layers (from {was.num_layers}) "
            f"and MLP {now.mlp_dim} (from {was.mlp_dim})"
        )
    return lines


def _traffic(name: str, traffic: BankTraffic) -> str:
    fetched, gathered = (
        f"{rows:,}{what} ({human(rows * traffic.row_bytes, 'B')})"
        for rows, what in (
            (traffic.fetched_rows, f" {traffic.row_name}s per device"),
            (traffic.gathered_rows, ""),
        )
    )
    verdict = "less" if traffic.fetching_moves_less else "more"
    remedy = "" if traffic.fetching_moves_less else "; consider ddp or a smaller micro-batch"
    return (
        f"{name}: a micro-batch fetches at most {fetched}, gathering the bank would move "
        f"{gathered}: fetching moves {verdict}{remedy}"
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
