"""Probes: training on a copy of a boundary's model, to see what it still knows or learns again."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L

from moc.callbacks.guards import StopOnNonFinite
from moc.callbacks.in_phase import is_due
from moc.callbacks.metrics import TrainingMetrics
from moc.config import ProbeConfig, StudyConfig, config_hash
from moc.data.module import StudyDataModule
from moc.data.tokenizer import Tokenizer
from moc.evaluate import BoundaryEvaluator, write_samples
from moc.journal import Journal
from moc.model.files import load_model
from moc.plan import micro_batch
from moc.rundir import write_json
from moc.train.distributed import barrier, is_main_process
from moc.train.fit import fit
from moc.train.logger import JournalLogger
from moc.train.module import StudyModule
from moc.train.strategies import num_devices


def run_probe(
    study: StudyConfig,
    name: str,
    *,
    boundary: Path,
    boundary_hash: str,
    seed: int,
    tokenizer: Tokenizer,
    evaluator: BoundaryEvaluator,
) -> None:
    """Train a copy of ``boundary``'s model as ``study.probes[name]`` says and write how its scores
    went to ``probes/<name>/<boundary>/probe.json`` of the run, unless that is there already.

    A probe is short: one that was interrupted begins again.
    """
    probe = study.probes[name]
    folder = boundary.parents[1] / "probes" / name / boundary.name
    probe_hash = config_hash(
        boundary_hash,
        replace(probe, after=[]),
        {source: study.data[source] for source in probe.phase.mixture},
        evaluator.eval_hash,
    )
    done = folder / "probe.json"
    if done.is_file() and json.loads(done.read_text())["config_hash"] == probe_hash:
        return
    if is_main_process():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    barrier()
    phase, trainer = probe.phase, study.trainer
    size, _ = micro_batch(phase, num_devices(trainer) * trainer.num_nodes)
    logger = JournalLogger(
        Journal(folder / "metrics.jsonl"),
        phase=name,
        tokens_before=0,
        tokens_per_step=phase.tokens_per_step,
        num_steps=phase.num_steps(),
        every=trainer.log_every_steps,
    )
    scoring = _Scoring(evaluator, probe, evaluator.tasks, folder)
    begun = time.monotonic()
    fit(
        StudyModule(load_model(boundary).train(), phase),
        StudyDataModule(study, phase, tokenizer, seed=seed, micro_batch=size),
        trainer,
        logger=logger,
        callbacks=[TrainingMetrics(), StopOnNonFinite(), scoring],
    )
    if not is_main_process():
        return
    index, _, boundary_name = boundary.name.partition("-")
    record = {
        "probe": name,
        "boundary": boundary_name,
        "index": int(index),
        "tokens_per_step": phase.tokens_per_step,
        "points": scoring.points,
        "elapsed_sec": round(time.monotonic() - begun, 3),
        "config_hash": probe_hash,
    }
    write_json(done, record)


class _Scoring(L.Callback):
    """Scores before the first step, about every ``every_tokens``, and after the last."""

    def __init__(
        self, evaluator: BoundaryEvaluator, probe: ProbeConfig, tasks: list[str], folder: Path
    ) -> None:
        self.evaluator, self.probe, self.folder = evaluator, probe, folder
        self.tasks = probe.tasks or tasks
        self.points: list[dict[str, Any]] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._score(pl_module, tokens=0, keep=True)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        assert isinstance(pl_module, StudyModule) and isinstance(trainer.logger, JournalLogger)
        step, size = pl_module.step, trainer.logger.tokens_per_step
        last = step == trainer.logger.num_steps
        if last or is_due(step, size, self.probe.every_tokens):
            self._score(pl_module, tokens=step * size, keep=last)

    def _score(self, pl_module: L.LightningModule, *, tokens: int, keep: bool) -> None:
        assert isinstance(pl_module, StudyModule)
        scores, samples = self.evaluator.score_tasks(
            pl_module.model, self.tasks, self.probe.num_items
        )
        kept = ("value", "num_items", "chance", "majority")
        tasks = {task: {key: score[key] for key in kept} for task, score in scores.items()}
        bits = self.evaluator.score_sources(pl_module.model, self.probe.num_items)
        self.points.append({"tokens": tokens, "tasks": tasks, "bits_per_byte": bits})
        if keep and is_main_process():
            write_samples(self.folder / f"samples-{tokens}", samples)
        barrier()
