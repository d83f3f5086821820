"""A run through all phases, whichever process does it: each phase resumable, each boundary scored.

``execute(ArmSeed.open(study_file, arm, seed), ...)`` is the unit of work that a machine takes.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from contextlib import nullcontext, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch

from moc.config.secrets import public
from moc.errors import (
    CheckpointError,
    DamagedFile,
    FormatError,
    MachineFault,
    RunGone,
    RunHeld,
    StudyInterrupted,
    TrainingDiverged,
)
from moc.model.files import load_model
from moc.model.memory.build import is_causal, routing_scope
from moc.model.transformer import build_model
from moc.plan.pause import Pause
from moc.run.arm_seed import ArmSeed
from moc.run.pause import has_paused, is_at, pause_of, score_pause
from moc.run.phase import train_phase
from moc.run.probe import probe_is_done, run_probe
from moc.run.settings import check_data, check_settings
from moc.run.shared_start import begin_as_sibling
from moc.run.tools import Tools
from moc.run.trouble import in_one_line
from moc.store.files import read_json, write_json
from moc.store.lock import check_held, run_lock
from moc.store.manifest import FORMAT, check_manifest
from moc.train.checkpoints import checkpoints_of, prune_checkpoints, save_start
from moc.train.distributed import barrier, is_main_process
from moc.train.strategies import device_of


def execute(run: ArmSeed, tools: Tools, siblings: Sequence[ArmSeed] = ()) -> None:
    """Do what is missing of ``run``, up to where ``trainer.pause_at`` stops it; nobody else does
    meanwhile.

    Args:
        siblings: of the same seed; a new run takes over the phases that it shares with one.

    Raises:
        RunHeld: if another process works on it.
        ConfigError: if what is on disk was trained with other settings or data.
        CheckpointError: if what is on disk is damaged beyond what can be passed over.
        MachineFault: if the machine gave out; with what is safe.
        RankLost, RunGone: see ``moc.errors``.
        StudyInterrupted: when asked to stop; the state is on disk.
        TrainingDiverged: after several updates in a row that were not finite.
    """
    pause = pause_of(run)
    with run_lock(run.dir.path) if is_main_process() else nullcontext():
        if pause is not None and is_complete(run, tools):
            return  # it may have gone on from there
        if torch.cuda.is_initialized():
            torch.cuda.reset_peak_memory_stats()
        _mark(run, "running", tools)
        check_settings(run)  # again: until now another process may have had it
        check_data(run)
        begin_as_sibling(run, siblings)
        try:
            for index in range(len(run.phases) if pause is None else pause.phase):
                _bring_to_its_end(run, index, tools)
            if pause is None:
                _probe(run, tools)
            elif pause.at_end:
                _bring_to_its_end(run, pause.phase, tools)
            else:
                _bring_to_pause(run, pause, tools)
        except (StudyInterrupted, RunGone):
            raise  # still running, as far as anyone can tell: the same command goes on
        except Exception as error:
            line = in_one_line(error, run)
            why = line or (str(error).splitlines() or [type(error).__name__])[0]
            with suppress(OSError):  # what failed may fail here once more
                status = "diverged" if isinstance(error, TrainingDiverged) else "failed"
                _mark(run, status, tools, why=public(why))
            if line is not None:
                raise MachineFault(line) from error
            raise
        _mark(run, "finished" if pause is None else "paused", tools)


def is_complete(run: ArmSeed, tools: Tools) -> bool:
    """Whether ``execute`` would find nothing to do."""
    try:
        status = read_json(run.dir.info).get("status")
        if (pause := pause_of(run)) is not None:
            return status in ("paused", "pruned", "finished") and has_paused(run, pause, tools)
        if status != "finished":
            return False
        for index in range(len(run.phases) + 1):
            folder = run.dir.boundary(index)
            if not tools.evaluator.is_done(folder) or not check_manifest(folder):
                return False
    except CheckpointError:
        return False  # ``execute`` says what is damaged
    return all(probe_is_done(run, name, index, tools) for name, index in _probes(run))


def rescore(run: ArmSeed, tools: Tools) -> None:
    """Score the boundaries that exist and were last scored in another way; train nothing, and leave
    alone what another process works on."""
    boundaries = range(len(run.phases) + 1)
    there = [index for index in boundaries if run.dir.boundary(index).is_dir()]
    if not is_main_process() or all(tools.evaluator.is_done(run.dir.boundary(i)) for i in there):
        return
    try:
        with run_lock(run.dir.path):
            for index in there:
                _evaluate_from_disk(run, index, tools)
    except RunHeld:
        return  # whoever trains it scores it


def _bring_to_its_end(run: ArmSeed, index: int, tools: Tools) -> None:
    """Phase ``index``, trained and evaluated at its boundaries."""
    if index == 0 and is_main_process():
        _restore_start(run)
    if not _is_trained(run, index):
        train_phase(run, index, tools)
    if is_main_process():
        # scores that a kill or other tasks left open; under way, the callback makes them
        for boundary in (0, 1) if index == 0 else (index + 1,):
            _evaluate_from_disk(run, boundary, tools)
        prune_checkpoints(run.dir.checkpoints, run.dir.phases[index], keep=0)
    tools.sync()


def _bring_to_pause(run: ArmSeed, pause: Pause, tools: Tools) -> None:
    """Its phase, as far as that, and scored there."""
    if has_paused(run, pause, tools):
        return  # what it shares with a sibling
    if pause.phase == 0 and is_main_process():
        _restore_start(run)
    if not is_at(run, pause):
        train_phase(run, pause.phase, tools, pause_step=pause.step)
    if is_main_process():
        if pause.phase == 0:
            _evaluate_from_disk(run, 0, tools)
        score_pause(run, pause, tools)
    barrier()  # every rank may look at the scores
    tools.sync()


def _restore_start(run: ArmSeed) -> None:
    """The untrained model follows from the settings: a damaged one is made again."""
    folder = run.dir.boundary(0)
    if not run.dir.boundaries() and not checkpoints_of(run.dir.checkpoints, run.dir.phases[0]):
        return  # nothing has begun
    try:
        check_manifest(folder)
    except FormatError:
        raise
    except CheckpointError as error:
        print(f"{run} | {error}: made again, it is the untrained model", flush=True)
        start = {"phase": run.dir.boundary_name(0), "step": 0, "tokens": 0, "data": {}}
        model = build_model(run.arm.model, run.seed)
        save_start(folder, model, **start, config_hash=run.hashes[0])


def _is_trained(run: ArmSeed, index: int) -> bool:
    folder = run.dir.boundary(index + 1)
    if not folder.is_dir():
        return False
    _checked(folder)
    return True


def _checked(boundary: Path) -> dict[str, Any]:
    """Its manifest.

    Raises:
        CheckpointError: if it is damaged, with the remedy.
    """
    try:
        return check_manifest(boundary)
    except FormatError:
        raise
    except CheckpointError as error:
        raise CheckpointError(f"{error}; remove {boundary} to train that phase again") from error


def _evaluate_from_disk(run: ArmSeed, index: int, tools: Tools) -> None:
    """Score a boundary whose weights exist but whose scores do not, or are of other tasks."""
    folder = run.dir.boundary(index)
    if tools.evaluator.is_done(folder):
        return
    manifest = _checked(folder)
    tools.evaluator.evaluate(
        load_model(folder).to(device_of(run.study.trainer)),
        folder,
        step=manifest["step"],
        tokens=manifest["tokens"],
        journal=run.dir.journal(),
    )


def _probe(run: ArmSeed, tools: Tools) -> None:
    """Train and score the study's probes, on copies of this run's boundaries."""
    for name, index in _probes(run):
        run_probe(run, name, index, tools)


def _probes(run: ArmSeed) -> Iterator[tuple[str, int]]:
    """Each probe and the index of the boundary that it starts from."""
    for name, probe in run.study.probes.items():
        for after in probe.after or run.dir.phases[-1:]:
            yield name, run.dir.phases.index(after) + 1


def _mark(run: ArmSeed, status: str, tools: Tools, *, why: str | None = None) -> None:
    if not is_main_process():
        return
    check_held(run.dir.path)
    path = run.dir.info
    now = datetime.now(UTC).isoformat(timespec="seconds")
    try:
        known = read_json(path)
    except DamagedFile as damaged:
        print(f"{run} | {damaged}; MLflow will show another run", flush=True)
        known = {}
    # of a GPU, by this process; a CPU does not say
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else 0
    write_json(
        path,
        {
            "format": FORMAT,
            "study": run.study.name,
            "arm": run.name,
            "seed": run.seed,
            "run_uuid": known.get("run_uuid", uuid4().hex),
            "kind": run.arm.model.memory.kind if run.arm.model.memory else "none",
            "scope": routing_scope(run.arm.model),
            "causal": is_causal(run.arm.model),
            "config_hash": run.hashes[-1],
            "started": known.get("started", now),
            "status": status,
            "why": why,
            "host": socket.gethostname(),
            "peak_memory_bytes": max(peak, known.get("peak_memory_bytes", 0)),
        },
        sync=True,
    )
    tools.sync()
