"""The main job: arms x seeds x phases."""

from __future__ import annotations

import json
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from evals.scoring.study_tasks import write_task_items
from moc.bench.peak import measure_matmul_peak
from moc.config.load import save_study
from moc.config.schema import StudyConfig
from moc.data.module import prepare
from moc.data.tokenizer import Tokenizer, build_tokenizer
from moc.errors import ConfigError, nearest
from moc.evaluate.evaluator import BoundaryEvaluator, check_evals
from moc.plan.arms import solved_arms
from moc.plan.study_plan import plan_study
from moc.report import build_report
from moc.run.arm_run import ArmRun
from moc.run.environment import describe_environment
from moc.store.files import write_json
from moc.tracking.mirror import Tracker
from moc.train.distributed import is_main_process
from moc.train.strategies import device_of, num_devices


def run_study(study: StudyConfig, *, arms: Sequence[str] = (), seeds: Sequence[int] = ()) -> Path:
    """Train and evaluate every arm and seed (or those named), then write the report.

    What is complete is skipped, and what was interrupted goes on from its last checkpoint. Under
    several processes every rank calls this.

    Returns:
        The report's path.

    Raises:
        ConfigError: for unknown arms or tasks, or a folder that holds a run with other settings;
            before any file of the study changes.
        CheckpointError: if what is on disk is damaged beyond what can be passed over.
        StudyInterrupted, KeyboardInterrupt: when asked to stop; the state is on disk.
        TrainingDiverged: after several updates in a row that were not finite.
    """
    for name in arms:
        if name not in study.arms:
            raise ConfigError(f"no arm {name!r} in this study; {nearest(name, list(study.arms))}")
    for seed in seeds:
        if seed not in study.seeds:
            raise ConfigError(f"seed {seed} is not among the study's seeds {study.seeds}")
    check_evals(study)
    # what is saved and tracked is what is trained: solved shapes, counted devices
    trainer = replace(study.trainer, devices=num_devices(study.trainer))
    study = replace(study, arms=solved_arms(study), trainer=trainer)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # stop as for Ctrl-C
    study.dir.mkdir(parents=True, exist_ok=True)
    lock = FileLock(study.dir / ".lock", timeout=0)
    tracker = None
    try:
        if is_main_process():
            try:
                lock.acquire()
            except Timeout:
                raise ConfigError(f"{study.dir} is in use by another process") from None
            tracker = Tracker(study)
        tokenizer = build_tokenizer(study)
        _check_vocabulary(study, tokenizer)
        evaluator = BoundaryEvaluator(study, tokenizer)
        runs = {
            (seed, name): ArmRun(
                study,
                name,
                arm,
                seed,
                tokenizer,
                evaluator=evaluator,
                sync=tracker.sync if tracker else lambda: None,
            )
            for seed in study.seeds
            for name, arm in study.arms.items()
        }
        for run in runs.values():
            run.check_settings()
        peak_flops = _prepare(study, tokenizer)
        if tracker is not None:
            tracker.start()
        for (seed, name), run in runs.items():
            if seed in (seeds or study.seeds) and name in (arms or study.arms):
                run.peak_flops = peak_flops
                run.run([each for each in runs.values() if each.seed == seed and each is not run])
            else:
                run.rescore()  # the study's tables must not mix two evaluations
        return build_report(study.dir) if is_main_process() else study.dir
    finally:
        if tracker is not None and (message := tracker.close()):
            print(message, flush=True)
        lock.release()
        signal.signal(signal.SIGTERM, before)


def _check_vocabulary(study: StudyConfig, tokenizer: Tokenizer) -> None:
    for name, arm in study.arms.items():
        if tokenizer.vocab_size > arm.model.vocab_size:
            raise ConfigError(
                f"the tokenizer has {tokenizer.vocab_size} tokens, more than "
                f"arms.{name}.model.vocab_size {arm.model.vocab_size}"
            )


def _prepare(study: StudyConfig, tokenizer: Tokenizer) -> float | None:
    """Build every phase's data and write what describes the study.

    Returns:
        The matmul peak of one device in FLOP/s, on rank 0.
    """
    datasets: dict[str, dict[str, str]] = {}
    for arm in study.arms.values():
        for name, phase in arm.phases.items():
            for source, cache in prepare(study, phase, tokenizer).items():
                datasets.setdefault(name, {})[source] = cache.fingerprint
    for probe in study.probes.values():
        prepare(study, probe.phase, tokenizer)
    if not is_main_process():
        return None
    save_study(study, study.dir / "study.yaml")
    tokenizer.save(study.dir / "tokenizer")
    write_task_items(study, study.dir / "tasks")
    write_json(study.dir / "plan.json", json.loads(plan_study(study).to_json()))
    write_json(study.dir / "datasets.json", datasets)
    device = device_of(study.trainer)
    bf16 = study.trainer.precision == "bf16-mixed"
    peak = measure_matmul_peak(device, torch.bfloat16 if bf16 else torch.float32)
    write_json(study.dir / "environment.json", describe_environment(device, peak))
    return peak
