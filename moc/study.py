"""The main job: arms x seeds x phases, each resumable, each boundary evaluated."""

from __future__ import annotations

import json
import logging
import os
import platform
import subprocess
import warnings
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any
from uuid import uuid4

import lightning as L
import torch
from filelock import FileLock, Timeout

from moc.callbacks.chapters import ChapterUtilisation
from moc.callbacks.checkpoint import Checkpoint
from moc.callbacks.forgetting import Forgetting
from moc.callbacks.guards import StopOnNonFinite
from moc.callbacks.metrics import TrainingMetrics
from moc.callbacks.progress import LiveProgress
from moc.callbacks.throughput import Throughput, measure_matmul_peak
from moc.config import ArmConfig, StudyConfig, config_hash, nearest, save_study
from moc.data.module import StudyDataModule
from moc.data.tasks import write_task_items
from moc.data.tokenizer import Tokenizer, build_tokenizer
from moc.errors import ConfigError, StudyInterrupted
from moc.evaluate import BoundaryEvaluator
from moc.flops import hardware_train_flops_per_token
from moc.model.files import load_model
from moc.model.transformer import Transformer, build_model
from moc.plan import micro_batch, plan_study, resolve_arms
from moc.report import build_report
from moc.rundir import RunDir, write_json
from moc.tracking import Tracker
from moc.train.checkpoints import (
    check_manifest,
    latest_checkpoint,
    load_training_state,
    prune_checkpoints,
)
from moc.train.distributed import is_main_process
from moc.train.logger import JournalLogger
from moc.train.module import StudyModule
from moc.train.strategies import accelerator_of, build_strategy, num_devices


def run_study(study: StudyConfig, *, arms: Sequence[str] = (), seeds: Sequence[int] = ()) -> Path:
    """Train and evaluate every arm and seed (or those named), then write the report.

    What is complete is skipped, and what was interrupted goes on from its last checkpoint. Under
    several processes every rank calls this.

    Returns:
        The report's path.

    Raises:
        ConfigError: for unknown arms, or a folder that holds a run with other settings.
        StudyInterrupted: when asked to stop; the state is on disk.
        TrainingDiverged: after several updates in a row that were not finite.
    """
    for name in arms:
        if name not in study.arms:
            raise ConfigError(f"no arm {name!r} in this study; {nearest(name, list(study.arms))}")
    study.trainer.devices = num_devices(study.trainer)
    resolved = resolve_arms(study)
    chosen = {name: arm for name, arm in resolved.items() if not arms or name in arms}
    _quiet_lightning()
    study.dir.mkdir(parents=True, exist_ok=True)
    lock = FileLock(study.dir / ".lock", timeout=0)
    if is_main_process():
        try:
            lock.acquire()
        except Timeout:
            raise ConfigError(f"{study.dir} is in use by another process") from None
    peak_flops = _prepare(study)
    tokenizer = build_tokenizer(study)
    if is_main_process():
        tokenizer.save(study.dir / "tokenizer")
        write_task_items(study, study.dir / "tasks")
    evaluator = BoundaryEvaluator(study, tokenizer)
    tracker = Tracker(study) if is_main_process() else None
    try:
        if tracker is not None:
            tracker.start()
        for seed in seeds or study.seeds:
            for name, arm in chosen.items():
                _ArmRun(study, name, arm, seed, tokenizer, evaluator, tracker, peak_flops).run()
        return build_report(study.dir) if is_main_process() else study.dir
    finally:
        if tracker is not None and (message := tracker.close()):
            print(message, flush=True)
        lock.release()


class _ArmRun:
    """One arm with one seed, through all phases."""

    def __init__(
        self,
        study: StudyConfig,
        name: str,
        arm: ArmConfig,
        seed: int,
        tokenizer: Tokenizer,
        evaluator: BoundaryEvaluator,
        tracker: Tracker | None,
        peak_flops: float | None,
    ) -> None:
        self.study, self.name, self.arm, self.seed = study, name, arm, seed
        self.tokenizer, self.evaluator = tokenizer, evaluator
        self.tracker, self.peak_flops = tracker, peak_flops
        self.run_dir = RunDir.of(study.dir, name, seed, list(arm.phases))
        self.hashes = _phase_hashes(study, arm, seed)

    def run(self) -> None:
        self._mark("running")
        try:
            for index in range(len(self.arm.phases)):
                self._phase(index)
        except StudyInterrupted:
            raise  # still running, as far as anyone can tell: the same command goes on
        except Exception:
            self._mark("failed")
            raise
        self._mark("finished")

    def _phase(self, index: int) -> None:
        """Bring phase ``index`` to its end: trained, and evaluated at its boundaries."""
        done = self._boundary_is_trained(index + 1)
        if done:
            for boundary in (0, index + 1) if index == 0 else (index + 1,):
                self._evaluate_from_disk(boundary)
            return
        name, phase = list(self.arm.phases.items())[index]
        checkpoint = latest_checkpoint(self.run_dir.checkpoints, name, self.hashes[index])
        model, optimizer_state, step = self._starting_point(index, checkpoint)
        journal, chapters = self.run_dir.journal(), self.run_dir.chapters()
        if is_main_process():
            journal.truncate(name, step, phases=list(self.arm.phases))
            chapters.truncate(name, step, phases=list(self.arm.phases))
        earlier = list(self.arm.phases.values())[:index]
        steps_before = sum(p.num_steps() for p in earlier)
        world = num_devices(self.study.trainer) * self.study.trainer.num_nodes
        size, _ = micro_batch(phase, world)
        module = StudyModule(
            model,
            phase,
            start_step=step,
            schedule_offset=steps_before if phase.carry.schedule else 0,
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
            start_sample=_samples_before(earlier) if phase.carry.data_position else 0,
            micro_batch=size,
        )
        flops = hardware_train_flops_per_token(self.arm.model, phase.context_length, size)
        throughput = Throughput(flops, self.peak_flops)
        phases = list(self.arm.phases.values())
        keep_optimizer = index + 1 < len(phases) and phases[index + 1].carry.optimizer
        callbacks: list[L.Callback] = [
            TrainingMetrics(),
            ChapterUtilisation(chapters),
            throughput,
            LiveProgress(f"{self.name} seed {self.seed}", throughput),
            StopOnNonFinite(),
            Checkpoint(
                self.run_dir.checkpoints,
                config_hash=self.hashes[index],
                every=self.study.trainer.checkpoint_every_steps,
                keep=self.study.trainer.keep_last,
                saved=self._sync,
            ),
            Forgetting(
                self.run_dir,
                self.evaluator,
                phase_index=index,
                config_hash=self.hashes[index],
                keep_optimizer=keep_optimizer,
            ),
        ]
        self._fit(module, data, logger, callbacks)
        if is_main_process():
            prune_checkpoints(self.run_dir.checkpoints, name, keep=0)
        self._sync()

    def _fit(
        self,
        module: StudyModule,
        data: StudyDataModule,
        logger: JournalLogger,
        callbacks: list[L.Callback],
    ) -> None:
        config = self.study.trainer
        trainer = L.Trainer(
            accelerator=accelerator_of(config),
            strategy=build_strategy(config),
            devices=num_devices(config),
            num_nodes=config.num_nodes,
            precision=config.precision,
            logger=logger,
            callbacks=callbacks,
            max_epochs=1,
            use_distributed_sampler=False,  # the data module gives every rank its own share
            enable_checkpointing=False,  # moc.callbacks.checkpoint does it
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        try:
            trainer.fit(module, datamodule=data)
        except SystemExit as error:  # Lightning's answer to a KeyboardInterrupt
            raise StudyInterrupted("stopped at once") from error

    def _starting_point(
        self, index: int, checkpoint: Path | None
    ) -> tuple[Transformer, dict[str, Any] | None, int]:
        """Model, optimizer state and step that phase ``index`` goes on from."""
        phase = list(self.arm.phases.values())[index]
        if checkpoint is not None:
            state = load_training_state(checkpoint)
            model = Transformer(self.arm.model)
            model.load_state_dict(state["model"])
            return model, state["optimizer"], state["step"]
        if index == 0:
            return build_model(self.arm.model, self.seed), None, 0
        folder = self.run_dir.boundary(index)
        model = load_model(folder).train()
        if phase.carry.optimizer:
            return model, load_training_state(folder)["optimizer"], 0
        return model, None, 0

    def _boundary_is_trained(self, index: int) -> bool:
        folder = self.run_dir.boundary(index)
        if not folder.is_dir():
            return False
        if check_manifest(folder)["config_hash"] != self.hashes[index - 1]:
            raise ConfigError(
                f"{self.run_dir.path} holds phase {self.run_dir.boundary_name(index)!r} trained "
                "with other settings; give the study another name, or remove that folder"
            )
        return True

    def _evaluate_from_disk(self, index: int) -> None:
        """Score a boundary whose weights exist but whose scores do not, or are of other tasks."""
        folder = self.run_dir.boundary(index)
        if self.evaluator.is_done(folder) or not is_main_process():
            return
        manifest = check_manifest(folder)
        device = "cuda" if accelerator_of(self.study.trainer) == "gpu" else "cpu"
        self.evaluator.evaluate(
            load_model(folder).to(device),
            folder,
            index=index,
            step=manifest["step"],
            tokens=manifest["tokens"],
            journal=self.run_dir.journal(),
        )

    def _sync(self) -> None:
        if self.tracker is not None:
            self.tracker.sync()

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
        self._sync()


def _phase_hashes(study: StudyConfig, arm: ArmConfig, seed: int) -> list[str]:
    """For every phase, a hash of all that decides the weights at its end."""
    hashes: list[str] = []
    for phase in arm.phases.values():
        sources = {name: study.data[name] for name in phase.mixture}
        before = hashes[-1] if hashes else ""
        parts = (before, arm.model, study.tokenizer, sources, phase, seed, study.trainer.precision)
        hashes.append(config_hash(*parts))
    return hashes


def _samples_before(phases: Sequence[Any]) -> int:
    return sum(p.num_steps() * (p.tokens_per_step // p.context_length) for p in phases)


def _prepare(study: StudyConfig) -> float | None:
    """Write what describes the study; the matmul peak of one device in FLOP/s (rank 0)."""
    if not is_main_process():
        return None
    save_study(study, study.dir / "study.yaml")
    plan = json.loads(plan_study(study).to_json())
    write_json(study.dir / "plan.json", plan)
    device = torch.device("cuda" if accelerator_of(study.trainer) == "gpu" else "cpu")
    bf16 = study.trainer.precision == "bf16-mixed"
    peak = measure_matmul_peak(device, torch.bfloat16 if bf16 else torch.float32)
    packages = ("torch", "lightning", "mlflow", "lm-eval", "datasets", "tokenizers", "omegaconf")
    environment = {
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
        "git_commit": _git_commit(),
        "machine": platform.processor() or platform.machine(),
        "cpu_count": os.cpu_count(),
        "num_threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if device.type == "cuda" else None,
        "matmul_peak_flops": peak,
    }
    write_json(study.dir / "environment.json", environment)
    return peak


def _git_commit() -> str | None:
    """The commit of this code, with ``-dirty`` when files differ from it; None outside git."""
    here = Path(__file__).resolve().parent
    command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return result.stdout.strip()


def _quiet_lightning() -> None:
    """Keep Lightning's advice, which our own settings answer, out of the progress lines."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    for message in (".*does not have many workers.*", ".*`isinstance.treespec, LeafSpec.*"):
        warnings.filterwarnings("ignore", message)
