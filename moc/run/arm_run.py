"""One arm with one seed, through all phases: each resumable, each boundary evaluated."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple
from uuid import uuid4

import torch

from moc.callbacks.chapters import ChapterUtilisation
from moc.callbacks.checkpoint import Checkpoint
from moc.callbacks.forgetting import Forgetting
from moc.callbacks.guards import StopOnNonFinite
from moc.callbacks.in_phase import InPhaseEvaluation
from moc.callbacks.metrics import TrainingMetrics
from moc.callbacks.progress import LiveProgress
from moc.callbacks.revival import Revival
from moc.callbacks.throughput import RestartClock, Throughput
from moc.config.schema import ArmConfig, PhaseConfig, StudyConfig
from moc.data.module import StudyDataModule
from moc.data.tokenizer import Tokenizer
from moc.errors import CheckpointError, StudyInterrupted
from moc.evaluate.evaluator import BoundaryEvaluator
from moc.model.config import is_causal, routing_scope
from moc.model.files import load_model
from moc.model.transformer import Transformer, build_model
from moc.plan.flops import hardware_train_flops_per_token
from moc.plan.study_plan import micro_batch
from moc.run.probe import run_probe
from moc.run.settings import boundary_hashes, check_settings
from moc.run.shared_start import begin_as_sibling
from moc.store.files import write_json
from moc.store.rundir import RunDir
from moc.train.checkpoints import (
    check_manifest,
    latest_checkpoint,
    load_training_state,
    prune_checkpoints,
)
from moc.train.distributed import is_main_process
from moc.train.fit import fit
from moc.train.logger import JournalLogger
from moc.train.module import StudyModule
from moc.train.strategies import device_of, total_devices


class _Start(NamedTuple):
    model: Transformer
    optimizer: dict[str, Any] | None = None  # moments by parameter name
    step: int = 0
    callbacks: Mapping[str, Any] = MappingProxyType({})  # what they counted, by state key


class ArmRun:
    """What one run directory holds, and how it gets there.

    Args:
        arm: resolved, with the shape that the iso-FLOP solver chose.
        peak_flops: of one device, for MFU; None leaves it out.
        sync: called when the journal has more to show.
    """

    def __init__(
        self,
        study: StudyConfig,
        name: str,
        arm: ArmConfig,
        seed: int,
        tokenizer: Tokenizer,
        *,
        evaluator: BoundaryEvaluator,
        peak_flops: float | None = None,
        sync: Callable[[], None] = lambda: None,
    ) -> None:
        self.study, self.name, self.arm, self.seed = study, name, arm, seed
        self.tokenizer, self.evaluator = tokenizer, evaluator
        self.peak_flops, self.sync = peak_flops, sync
        self.peak_memory_bytes = 0  # of a GPU, by this process; a CPU does not say
        self.phases = list(arm.phases.values())
        self.run_dir = RunDir.of(study.dir, name, seed, list(arm.phases))
        self.hashes = boundary_hashes(study, arm, seed, tokenizer.fingerprint)

    def check_settings(self) -> None:
        """
        Raises:
            ConfigError: if the folder holds weights that were trained with other settings.
        """
        check_settings(self.study, self.name, self.run_dir, self.hashes)

    def run(self, siblings: Sequence[ArmRun] = ()) -> None:
        """Do what is missing.

        Args:
            siblings: of the same seed; a new run takes over the phases that it shares with one.

        Raises:
            CheckpointError: if what is on disk is damaged beyond what can be passed over.
            StudyInterrupted: when asked to stop; the state is on disk.
            TrainingDiverged: after several updates in a row that were not finite.
        """
        self._mark("running")
        begin_as_sibling(self, siblings)
        try:
            for index in range(len(self.phases)):
                self._phase(index)
            self._probe()
        except StudyInterrupted:
            raise  # still running, as far as anyone can tell: the same command goes on
        except Exception:
            self._mark("failed")
            raise
        self._mark("finished")

    def rescore(self) -> None:
        """Score the boundaries that exist and were last scored in another way; train nothing."""
        for index in range(len(self.phases) + 1):
            if is_main_process() and self.run_dir.boundary(index).is_dir():
                self._evaluate_from_disk(index)

    def needs_optimizer(self, index: int) -> bool:
        """Whether the phase after boundary ``index`` goes on with the Adam moments there."""
        return any(phase.carry.optimizer for phase in self.phases[index : index + 1])

    def _probe(self) -> None:
        """Train and score the study's probes, on copies of this run's boundaries."""
        for name, probe in self.study.probes.items():
            for after in probe.after or self.run_dir.phases[-1:]:
                index = self.run_dir.phases.index(after) + 1
                run_probe(
                    self.study,
                    name,
                    boundary=self.run_dir.boundary(index),
                    boundary_hash=self.hashes[index],
                    seed=self.seed,
                    tokenizer=self.tokenizer,
                    evaluator=self.evaluator,
                )

    def _phase(self, index: int) -> None:
        """Bring phase ``index`` to its end: trained, and evaluated at its boundaries."""
        if not self._is_trained(index):
            self._train(index)
        if is_main_process():
            # scores that a kill or other tasks left open; under way, the callback makes them
            for boundary in (0, 1) if index == 0 else (index + 1,):
                self._evaluate_from_disk(boundary)
            prune_checkpoints(self.run_dir.checkpoints, self._name(index), keep=0)
        self.sync()

    def _train(self, index: int) -> None:
        name, phase, trainer = self._name(index), self.phases[index], self.study.trainer
        checkpoint = latest_checkpoint(self.run_dir.checkpoints, name)
        start = self._starting_point(index, checkpoint)
        if is_main_process():
            for file in (self.run_dir.journal(), self.run_dir.chapters(), self.run_dir.revivals()):
                if file.path.is_file():
                    file.truncate(name, start.step, phases=self.run_dir.phases)
        if torch.cuda.is_initialized():
            torch.cuda.reset_peak_memory_stats()
        earlier = self.phases[:index]
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
            self.run_dir.journal(),
            phase=name,
            tokens_before=sum(p.num_steps() * p.tokens_per_step for p in earlier),
            tokens_per_step=phase.tokens_per_step,
            num_steps=phase.num_steps(),
            every=trainer.log_every_steps,
        )
        data = StudyDataModule(
            self.study,
            phase,
            self.tokenizer,
            seed=self.seed,
            start_step=start.step,
            start_sample=_num_samples(earlier) if phase.carry.data_position else 0,
            micro_batch=size,
        )
        flops = hardware_train_flops_per_token(
            replace(self.arm.model, activation_checkpointing=False),  # MFU: no recomputation
            phase.context_length,
            size,
            gpu=device_of(trainer).type == "cuda",
        )
        throughput = Throughput(flops, self.peak_flops)
        revival, in_phase = [], []
        if (every := phase.revive_every_steps) and not phase.no_op:
            revival = [Revival(every, seed=self.seed, revivals=self.run_dir.revivals())]
        if every_tokens := self.study.evals.in_phase.every_tokens:
            in_phase = [InPhaseEvaluation(self.evaluator, every_tokens=every_tokens)]
        callbacks = [
            throughput,
            TrainingMetrics(),
            *revival,  # before ChapterUtilisation, which looks at what the next step reads
            ChapterUtilisation(self.run_dir.chapters()),
            LiveProgress(f"{self.name} seed {self.seed}", throughput),
            StopOnNonFinite(),
            Forgetting(
                self.run_dir,
                self.evaluator,
                phase_index=index,
                config_hashes=self.hashes,
                keep_optimizer=self.needs_optimizer(index + 1),
            ),
            *in_phase,  # after all that logs the step
            Checkpoint(  # after all whose state it saves; the last step's is Forgetting's boundary
                self.run_dir.checkpoints,
                config_hash=self.hashes[index + 1],
                every=trainer.checkpoint_every_steps,
                restored=start.callbacks,
                saved=self.sync,
            ),
            RestartClock(throughput),
        ]
        fit(module, data, trainer, logger=logger, callbacks=callbacks)
        if torch.cuda.is_initialized():
            self.peak_memory_bytes = max(self.peak_memory_bytes, torch.cuda.max_memory_allocated())

    def _starting_point(self, index: int, checkpoint: Path | None) -> _Start:
        """What phase ``index`` goes on from."""
        if checkpoint is not None:
            state = load_training_state(checkpoint)
            model = Transformer(self.arm.model)
            model.load_state_dict(state["model"])
            return _Start(model, state["optimizer"], state["step"], state["callbacks"])
        if index == 0:
            return _Start(build_model(self.arm.model, self.seed))
        folder = self.run_dir.boundary(index)
        carry = self.phases[index].carry.optimizer
        optimizer = load_training_state(folder)["optimizer"] if carry else None
        return _Start(load_model(folder).train(), optimizer)

    def _is_trained(self, index: int) -> bool:
        folder = self.run_dir.boundary(index + 1)
        if not folder.is_dir():
            return False
        try:
            check_manifest(folder)
        except CheckpointError as error:
            raise CheckpointError(f"{error}; remove {folder} to train that phase again") from error
        return True

    def _evaluate_from_disk(self, index: int) -> None:
        """Score a boundary whose weights exist but whose scores do not, or are of other tasks."""
        folder = self.run_dir.boundary(index)
        if self.evaluator.is_done(folder):
            return
        manifest = check_manifest(folder)
        self.evaluator.evaluate(
            load_model(folder).to(device_of(self.study.trainer)),
            folder,
            index=index,
            step=manifest["step"],
            tokens=manifest["tokens"],
            journal=self.run_dir.journal(),
        )

    def _name(self, index: int) -> str:
        return self.run_dir.phases[index]

    def _mark(self, status: str) -> None:
        if not is_main_process():
            return
        path = self.run_dir.path / "run.json"
        now = datetime.now(UTC).isoformat(timespec="seconds")
        known = json.loads(path.read_text()) if path.is_file() else {}
        write_json(
            path,
            {
                "study": self.study.name,
                "arm": self.name,
                "seed": self.seed,
                "run_uuid": known.get("run_uuid", uuid4().hex),
                "scope": routing_scope(self.arm.model),
                "causal": is_causal(self.arm.model),
                "config_hash": self.hashes[-1],
                "started": known.get("started", now),
                "status": status,
                "peak_memory_bytes": max(self.peak_memory_bytes, known.get("peak_memory_bytes", 0)),
            },
        )
        self.sync()


def _num_samples(phases: list[PhaseConfig]) -> int:
    return sum(p.num_steps() * (p.tokens_per_step // p.context_length) for p in phases)
