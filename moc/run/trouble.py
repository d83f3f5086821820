"""What the machine did to a run, in one line: what happened, what is safe, what to do."""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType

from moc.errors import machine_fault
from moc.plan.arms import micro_batch
from moc.plan.study_plan import plan_study
from moc.run.arm_seed import ArmSeed
from moc.text import human
from moc.train.checkpoints import checkpoints_of
from moc.train.strategies import total_devices


def in_one_line(error: BaseException, run: ArmSeed) -> str | None:
    """None if ``error`` is not the machine's."""
    fault = machine_fault(error)
    if fault is None:
        return None
    remedy = _less_memory(error, run) if fault.memory else f"{fault.remedy}, then the same command"
    return f"{run}: {fault.what}; {_safe(run)}; {remedy}"


def _safe(run: ArmSeed) -> str:
    try:
        return _last_saved(run)
    except OSError:  # the machine does not even let us look
        return "what was saved is whole"


def _last_saved(run: ArmSeed) -> str:
    for index, name in reversed(list(enumerate(run.dir.phases))):
        if run.dir.boundary(index + 1).is_dir():
            return f"phase {name} is saved to its end"
        if found := checkpoints_of(run.dir.checkpoints, name):
            return f"phase {name} is saved up to step {int(found[0].name.rpartition('-')[2])}"
    return "no step was saved yet"


def _less_memory(error: BaseException, run: ArmSeed) -> str:
    """What ``moc plan`` expected, and the settings that need less; none is changed silently."""
    if any(name.startswith(("moc.evaluate", "evals.")) for name in _modules(error.__traceback__)):
        size = run.study.evals.batch_size
        return (
            f"it was scoring: the same command with evals.batch_size={max(1, size // 2)} needs "
            f"about half of that (now {size}; scores do not depend on it)"
        )
    boundaries = range(1, len(run.phases) + 1)
    index = next((i - 1 for i in boundaries if not run.dir.boundary(i).is_dir()), 0)
    name, plan = run.dir.phases[index], plan_study(run.study).arms[run.name]
    size, _ = micro_batch(run.phases[index], total_devices(run.study.trainer))
    halves = f"phases.{name}.micro_batch={size // 2} halves the activations; " if size > 1 else ""
    return (
        f"'moc plan' expects {human(plan.state_bytes, 'B')} of weights and moments and about "
        f"{human(plan.activation_bytes, 'B')} of activations at micro_batch {size}; {halves}"
        "model.activation_checkpointing=true keeps fewer; either is another study (name=...)"
    )


def _modules(trace: TracebackType | None) -> Iterator[str]:
    while trace is not None:
        yield trace.tb_frame.f_globals.get("__name__", "")
        trace = trace.tb_next
