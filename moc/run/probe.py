"""Probes: training on a copy of a boundary's model, to see what it still knows or learns again."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import replace
from pathlib import Path

from moc.callbacks.guards import StopOnNonFinite
from moc.callbacks.metrics import TrainingMetrics
from moc.callbacks.probe import ProbeScores
from moc.config.load import config_hash
from moc.config.schema import StudyConfig
from moc.data.module import StudyDataModule
from moc.data.tokenizer import Tokenizer
from moc.evaluate.evaluator import BoundaryEvaluator
from moc.model.files import load_model
from moc.plan.study_plan import micro_batch
from moc.store.files import write_json
from moc.store.journal import Journal
from moc.train.distributed import barrier, is_main_process
from moc.train.fit import fit
from moc.train.logger import JournalLogger
from moc.train.module import StudyModule
from moc.train.strategies import total_devices


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
    size, _ = micro_batch(phase, total_devices(trainer))
    logger = JournalLogger(
        Journal(folder / "metrics.jsonl"),
        phase=name,
        tokens_before=0,
        tokens_per_step=phase.tokens_per_step,
        num_steps=phase.num_steps(),
        every=trainer.log_every_steps,
    )
    scoring = ProbeScores(evaluator, probe, folder)
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
