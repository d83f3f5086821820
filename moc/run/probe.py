"""Probes: training on a copy of a boundary's model, to see what it still knows or learns again."""

from __future__ import annotations

import shutil
import time
from dataclasses import replace

from moc.callbacks.guards import StopOnNonFinite
from moc.callbacks.metrics import TrainingMetrics
from moc.callbacks.probe import ProbeScores
from moc.config.identity import config_hash
from moc.data.module import StudyDataModule, prepare
from moc.model.files import load_model
from moc.plan.arms import micro_batch
from moc.run.arm_seed import ArmSeed
from moc.run.tools import Tools
from moc.store.files import read_sound_json, write_json
from moc.store.journal import Journal
from moc.train.distributed import barrier, is_main_process
from moc.train.fit import fit
from moc.train.logger import JournalLogger
from moc.train.module import StudyModule
from moc.train.strategies import total_devices


def run_probe(run: ArmSeed, name: str, index: int, tools: Tools) -> None:
    """Train a copy of the model at boundary ``index`` as ``study.probes[name]`` says and write how
    its scores went to ``probes/<name>/<boundary>/probe.json`` of the run, unless that is there
    already.

    A probe is short: one that was interrupted begins again.
    """
    if probe_is_done(run, name, index, tools):
        return
    study, boundary = run.study, run.dir.boundary(index)
    probe = study.probes[name]
    folder = run.dir.probe(name, boundary)
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
    scoring = ProbeScores(tools.evaluator, probe, folder)
    begun = time.monotonic()
    fit(
        StudyModule(load_model(boundary).train(), phase),
        StudyDataModule(study, phase, run.tokenizer, seed=run.seed, micro_batch=size),
        trainer,
        logger=logger,
        callbacks=[TrainingMetrics(), StopOnNonFinite(), scoring],
    )
    if not is_main_process():
        return
    record = {
        "probe": name,
        "boundary": run.dir.boundary_name(index),
        "index": index,
        "tokens_per_step": phase.tokens_per_step,
        "points": scoring.points,
        "elapsed_sec": round(time.monotonic() - begun, 3),
        "config_hash": _hash(run, name, index, tools),
    }
    write_json(folder / "probe.json", record, sync=True)


def probe_is_done(run: ArmSeed, name: str, index: int, tools: Tools) -> bool:
    record = read_sound_json(run.dir.probe(name, run.dir.boundary(index)) / "probe.json")
    return record.get("config_hash") == _hash(run, name, index, tools)


def _hash(run: ArmSeed, name: str, index: int, tools: Tools) -> str:
    study, probe = run.study, run.study.probes[name]
    return config_hash(
        run.hashes[index],
        replace(probe, after=[]),
        {source: study.data[source] for source in probe.phase.mixture},
        {name: c.fingerprint for name, c in prepare(study, probe.phase, run.tokenizer).items()},
        tools.evaluator.eval_hash,
    )
