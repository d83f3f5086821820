"""One phase of a run, from its start or its last checkpoint to its boundary."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from moc.callbacks.checkpoint import Checkpoint
from moc.callbacks.forgetting import Forgetting
from moc.callbacks.guards import StopOnNonFinite
from moc.callbacks.in_phase import InPhaseEvaluation
from moc.callbacks.memory_use import MemoryUse
from moc.callbacks.metrics import TrainingMetrics
from moc.callbacks.progress import LiveProgress
from moc.callbacks.revival import Revival
from moc.callbacks.spikes import Spikes
from moc.callbacks.throughput import RestartClock, Throughput
from moc.config.schema import PhaseConfig
from moc.data.module import StudyDataModule
from moc.errors import CheckpointError, RunPaused
from moc.model.files import load_model
from moc.model.transformer import Transformer, build_model
from moc.plan.arms import micro_batch
from moc.plan.flops import hardware_train_flops_per_token
from moc.run.arm_seed import ArmSeed
from moc.run.settings import check_streams
from moc.run.tools import Tools
from moc.train.checkpoints import latest_checkpoint, load_training_state
from moc.train.distributed import is_main_process
from moc.train.fit import Callbacks, fit
from moc.train.logger import JournalLogger
from moc.train.module import StudyModule
from moc.train.strategies import device_of, total_devices


class _Start(NamedTuple):
    model: Transformer
    optimizer: dict[str, Any] | None = None  # moments by parameter name
    step: int = 0
    callbacks: Mapping[str, Any] = MappingProxyType({})  # what they counted, by state key


def train_phase(run: ArmSeed, index: int, tools: Tools, *, pause_step: int | None = None) -> None:
    """Train phase ``index`` of ``run``, whose earlier phases are done; its boundary is scored.

    Args:
        pause_step: stop after this step, a checkpoint on disk.

    Raises:
        CheckpointError: if what is on disk is damaged beyond what can be passed over.
        ConfigError: if the data have changed since the study was started.
        StudyInterrupted: when asked to stop; the state is on disk.
        TrainingDiverged: after several updates in a row that were not finite.
    """
    name, phase, trainer = run.dir.phases[index], run.phases[index], run.study.trainer
    start = _starting_point(run, index, latest_checkpoint(run.dir.checkpoints, name))
    if is_main_process():
        # a later phase is there already if this one's boundary was damaged and removed
        again = [
            phase_name
            for after, phase_name in enumerate(run.dir.phases, start=1)
            if after <= index + 1 or not run.dir.boundary(after).is_dir()
        ]
        for file in (run.dir.journal(), run.dir.memory_use(), run.dir.revivals()):
            if file.path.is_file():
                file.truncate(name, start.step, phases=again)
    earlier = run.phases[:index]
    size, _ = micro_batch(phase, total_devices(trainer))
    module = StudyModule(
        start.model,
        phase,
        start_step=start.step,
        schedule_offset=sum(p.num_steps() for p in earlier) if phase.carry.schedule else 0,
        compile_model=trainer.compile,
    )
    module.optimizer_state = start.optimizer
    logger = JournalLogger(
        run.dir.journal(),
        phase=name,
        tokens_before=sum(p.num_steps() * p.tokens_per_step for p in earlier),
        tokens_per_step=phase.tokens_per_step,
        num_steps=phase.num_steps(),
        every=trainer.log_every_steps,
    )
    data = StudyDataModule(
        run.study,
        phase,
        run.tokenizer,
        seed=run.seed,
        start_step=start.step,
        start_sample=_num_samples(earlier) if phase.carry.data_position else 0,
        micro_batch=size,
    )
    check_streams(run, index, data.fingerprints())
    callbacks = _callbacks(
        run, index, tools, start.callbacks, micro_batch=size, pause_step=pause_step
    )
    try:
        fit(module, data, trainer, logger=logger, callbacks=callbacks)
    except RunPaused:
        return
    except CheckpointError as error:
        raise CheckpointError(_last_line(error)) from error


def _callbacks(
    run: ArmSeed,
    index: int,
    tools: Tools,
    restored: Mapping[str, Any],
    *,
    micro_batch: int,
    pause_step: int | None,
) -> Callbacks:
    phase, trainer = run.phases[index], run.study.trainer
    flops = hardware_train_flops_per_token(
        replace(run.arm.model, activation_checkpointing=False),  # MFU: no recomputation
        phase.context_length,
        micro_batch,
        gpu=device_of(trainer).type == "cuda",
    )
    throughput = Throughput(flops, tools.peak_flops)
    revival, in_phase = [], []
    if (every := phase.revive_every_steps) and not phase.no_op:
        revival = [Revival(every, seed=run.seed, revivals=run.dir.revivals())]
    if every_tokens := run.study.evals.in_phase.every_tokens:
        in_phase = [InPhaseEvaluation(tools.evaluator, every_tokens=every_tokens)]
    return [
        throughput,
        TrainingMetrics(),
        *revival,  # before ChapterUtilisation, which looks at what the next step reads
        MemoryUse(run.dir.memory_use()),
        LiveProgress(str(run), throughput),
        StopOnNonFinite(),
        Spikes(trainer.on_spike),
        Forgetting(
            run.dir,
            tools.evaluator,
            phase_index=index,
            config_hashes=run.hashes,
            data=run.data(index),
            keep_optimizer=run.needs_optimizer(index + 1),
        ),
        *in_phase,  # after all that logs the step
        Checkpoint(  # after all whose state it saves; the last step's is Forgetting's boundary
            run.dir.checkpoints,
            config_hash=run.hashes[index + 1],
            data=run.data(index),
            every=trainer.checkpoint_every_steps,
            pause_step=pause_step,
            restored=restored,
            saved=tools.sync,
        ),
        RestartClock(throughput),
    ]


def _starting_point(run: ArmSeed, index: int, checkpoint: Path | None) -> _Start:
    """What phase ``index`` goes on from."""
    if checkpoint is not None:
        state = load_training_state(checkpoint)
        model = Transformer(run.arm.model)
        model.load_state_dict(state["model"])
        return _Start(model, state["optimizer"], state["step"], state["callbacks"])
    if index == 0:
        return _Start(build_model(run.arm.model, run.seed))
    folder = run.dir.boundary(index)
    carry = run.phases[index].carry.optimizer
    optimizer = load_training_state(folder)["optimizer"] if carry else None
    return _Start(load_model(folder).train(), optimizer)


def _last_line(error: CheckpointError) -> str:
    """The message itself: a loader's worker puts its traceback before it."""
    *traceback, message = str(error).strip().splitlines()
    return message.partition("Error: ")[2] if traceback else message


def _num_samples(phases: list[PhaseConfig]) -> int:
    return sum(p.num_steps() * (p.tokens_per_step // p.context_length) for p in phases)
