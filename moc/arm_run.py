"""One arm with one seed, through all phases: each resumable, each boundary evaluated."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from moc.callbacks.chapters import ChapterUtilisation
from moc.callbacks.checkpoint import Checkpoint
from moc.callbacks.forgetting import Forgetting
from moc.callbacks.guards import StopOnNonFinite
from moc.callbacks.metrics import TrainingMetrics
from moc.callbacks.progress import LiveProgress
from moc.callbacks.throughput import RestartClock, Throughput
from moc.config import ArmConfig, PhaseConfig, StudyConfig, config_hash, differences, load_study
from moc.data.module import StudyDataModule, needed_tokens
from moc.data.tokenizer import Tokenizer
from moc.errors import CheckpointError, ConfigError, StudyInterrupted
from moc.evaluate import BoundaryEvaluator
from moc.flops import hardware_train_flops_per_token
from moc.model.files import load_model
from moc.model.transformer import Transformer, build_model
from moc.plan import micro_batch
from moc.rundir import RunDir, write_json
from moc.train.checkpoints import (
    check_manifest,
    checkpoints_of,
    latest_checkpoint,
    load_training_state,
    prune_checkpoints,
    read_manifest,
)
from moc.train.distributed import is_main_process
from moc.train.fit import fit
from moc.train.logger import JournalLogger
from moc.train.module import StudyModule
from moc.train.strategies import device_of, num_devices


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
        self.phases = list(arm.phases.values())
        self.run_dir = RunDir.of(study.dir, name, seed, list(arm.phases))
        self.hashes = boundary_hashes(study, arm, seed, tokenizer.fingerprint)

    def check_settings(self) -> None:
        """
        Raises:
            ConfigError: if the folder holds weights that were trained with other settings.
        """
        for index, expected in enumerate(self.hashes):
            found = [self.run_dir.boundary(index)]
            if index:
                phase = self.run_dir.boundary_name(index)
                found += checkpoints_of(self.run_dir.checkpoints, phase)
            for folder in found:
                if not (folder / "manifest.json").is_file():
                    continue
                try:
                    manifest = read_manifest(folder)
                except CheckpointError:
                    continue  # whoever needs this folder explains
                if manifest["config_hash"] != expected:
                    raise ConfigError(
                        f"{folder} was trained with other settings{self._what_differs()}; give "
                        f"the study another name (name=...), or remove {self.study.dir / 'arms'}"
                    )

    def run(self) -> None:
        """Do what is missing.

        Raises:
            CheckpointError: if what is on disk is damaged beyond what can be passed over.
            StudyInterrupted: when asked to stop; the state is on disk.
            TrainingDiverged: after several updates in a row that were not finite.
        """
        self._mark("running")
        try:
            for index in range(len(self.phases)):
                self._phase(index)
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
        name, phase = self._name(index), self.phases[index]
        checkpoint = latest_checkpoint(self.run_dir.checkpoints, name)
        model, optimizer_state, step = self._starting_point(index, checkpoint)
        journal, chapters = self.run_dir.journal(), self.run_dir.chapters()
        if is_main_process():
            for file in (journal, chapters):
                if file.path.is_file():
                    file.truncate(name, step, phases=self.run_dir.phases)
        earlier = self.phases[:index]
        size, _ = micro_batch(phase, num_devices(self.study.trainer) * self.study.trainer.num_nodes)
        module = StudyModule(
            model,
            phase,
            start_step=step,
            schedule_offset=sum(p.num_steps() for p in earlier) if phase.carry.schedule else 0,
            compile_model=self.study.trainer.compile,
        )
        module.optimizer_state = optimizer_state
        logger = JournalLogger(
            journal,
            phase=name,
            tokens_before=sum(p.num_steps() * p.tokens_per_step for p in earlier),
            tokens_per_step=phase.tokens_per_step,
            num_steps=phase.num_steps(),
            every=self.study.trainer.log_every_steps,
        )
        data = StudyDataModule(
            self.study,
            phase,
            self.tokenizer,
            seed=self.seed,
            start_step=step,
            start_sample=_num_samples(earlier) if phase.carry.data_position else 0,
            micro_batch=size,
        )
        flops = hardware_train_flops_per_token(
            replace(self.arm.model, activation_checkpointing=False),  # MFU: no recomputation
            phase.context_length,
            size,
            fused_attention=device_of(self.study.trainer).type == "cuda",
        )
        throughput = Throughput(flops, self.peak_flops)
        following = self.phases[index + 1 : index + 2]
        config_hash = self.hashes[index + 1]
        callbacks = [
            throughput,
            TrainingMetrics(),
            ChapterUtilisation(chapters),
            LiveProgress(f"{self.name} seed {self.seed}", throughput),
            StopOnNonFinite(),
            Forgetting(
                self.run_dir,
                self.evaluator,
                phase_index=index,
                config_hashes=self.hashes,
                keep_optimizer=any(p.carry.optimizer for p in following),
            ),
            Checkpoint(  # after Forgetting, whose boundary is the last step's checkpoint
                self.run_dir.checkpoints,
                config_hash=config_hash,
                every=self.study.trainer.checkpoint_every_steps,
                keep=self.study.trainer.keep_last,
                saved=self.sync,
            ),
            RestartClock(throughput),
        ]
        fit(module, data, self.study.trainer, logger=logger, callbacks=callbacks)

    def _starting_point(
        self, index: int, checkpoint: Path | None
    ) -> tuple[Transformer, dict[str, Any] | None, int]:
        """Model, optimizer state and step that phase ``index`` goes on from."""
        if checkpoint is not None:
            state = load_training_state(checkpoint)
            model = Transformer(self.arm.model)
            model.load_state_dict(state["model"])
            return model, state["optimizer"], state["step"]
        if index == 0:
            return build_model(self.arm.model, self.seed), None, 0
        folder = self.run_dir.boundary(index)
        model = load_model(folder).train()
        if self.phases[index].carry.optimizer:
            return model, load_training_state(folder)["optimizer"], 0
        return model, None, 0

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

    def _what_differs(self) -> str:
        """The settings that changed since the study was last run, as far as they are known."""
        path = self.study.dir / "study.yaml"
        if not path.is_file():
            return ""
        before, now = load_study(path), self.study
        parts: list[tuple[Any, Any, str]] = [
            (before.arms.get(self.name), now.arms[self.name], f"arms.{self.name}"),
            (before.data, now.data, "data"),
            (before.tokenizer, now.tokenizer, "tokenizer"),
        ]
        found = [line for part in parts for line in differences(*part)]
        more = f" and {len(found) - 2} more" if len(found) > 2 else ""
        return f" ({'; '.join(found[:2])}{more})" if found else ""

    def _name(self, index: int) -> str:
        return self.run_dir.phases[index]

    def _mark(self, status: str) -> None:
        if not is_main_process():
            return
        path = self.run_dir.path / "run.json"
        now = datetime.now(UTC).isoformat(timespec="seconds")
        known = json.loads(path.read_text()) if path.is_file() else {}
        memory = self.arm.model.memory
        routed = memory is not None and memory.num_routed is not None
        write_json(
            path,
            {
                "study": self.study.name,
                "arm": self.name,
                "seed": self.seed,
                "run_uuid": known.get("run_uuid", uuid4().hex),
                "scope": memory.router.scope if memory is not None and routed else "none",
                "causal": not (memory is not None and routed and memory.router.scope == "sequence"),
                "config_hash": self.hashes[-1],
                "started": known.get("started", now),
                "status": status,
            },
        )
        self.sync()


def boundary_hashes(
    study: StudyConfig, arm: ArmConfig, seed: int, tokenizer_fingerprint: str
) -> list[str]:
    """For every boundary, a hash of all that decides the weights there. Devices are left out: a
    run may go on with others."""
    hashes = [config_hash(arm.model, tokenizer_fingerprint, seed)]
    for phase in arm.phases.values():
        sources = {
            name: [study.data[name], needed_tokens(study, phase, name)] for name in phase.mixture
        }
        hashes.append(config_hash(hashes[-1], sources, phase, study.trainer.precision))
    return hashes


def _num_samples(phases: list[PhaseConfig]) -> int:
    return sum(p.num_steps() * (p.tokens_per_step // p.context_length) for p in phases)
