"""A run that stops on the way (``trainer.pause_at``): scored there, its state on disk, and going on
to the same weights when it is asked for more."""

from __future__ import annotations

from moc.errors import CheckpointError
from moc.model.transformer import Transformer
from moc.plan.pause import Pause, find_pause
from moc.run.arm_seed import ArmSeed
from moc.run.tools import Tools
from moc.store.files import read_json, read_sound_json, write_json
from moc.store.lock import run_lock
from moc.store.manifest import check_manifest
from moc.store.rundir import RunDir
from moc.train.checkpoints import latest_checkpoint, load_training_state
from moc.train.strategies import device_of


def pause_of(run: ArmSeed) -> Pause | None:
    return find_pause(run.phases, run.study.trainer.pause_at)


def has_paused(run: ArmSeed, pause: Pause, tools: Tools) -> bool:
    """Whether ``run`` has been at ``pause`` and was scored there, wherever it is now.

    Raises:
        CheckpointError: if the boundary there is damaged.
    """
    if pause.at_end:
        folder = run.dir.boundary(pause.phase + 1)
        return tools.evaluator.is_done(folder) and bool(check_manifest(folder))
    record = read_sound_json(run.dir.pause(pause.phase, pause.step))
    same_weights = record.get("config_hash") == run.hashes[pause.phase + 1]
    return same_weights and record.get("eval_hash") == tools.evaluator.eval_hash


def is_at(run: ArmSeed, pause: Pause) -> bool:
    """Whether the state there is on disk, and it need not train to get there.

    Raises:
        CheckpointError: if it went on from there, so that it cannot be scored there any more.
    """
    name = run.dir.boundary_name(pause.phase + 1)
    checkpoint = latest_checkpoint(run.dir.checkpoints, name)
    step = int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0
    if step > pause.step or run.dir.boundary(pause.phase + 1).is_dir():
        raise CheckpointError(
            f"{run.dir.path} has gone on past step {pause.step} of phase {name}, and was not "
            "scored there in this way; remove it to train it again"
        )
    return step == pause.step


def score_pause(run: ArmSeed, pause: Pause, tools: Tools) -> None:
    """Bits per byte of every source, beside what decided them; from the checkpoint there."""
    name = run.dir.boundary_name(pause.phase + 1)
    checkpoint = latest_checkpoint(run.dir.checkpoints, name)
    assert checkpoint is not None
    model = Transformer(run.arm.model)
    model.load_state_dict(load_training_state(checkpoint)["model"])
    record = {
        "phase": name,
        "step": pause.step,
        "tokens": pause.tokens,
        "config_hash": run.hashes[pause.phase + 1],
        "eval_hash": tools.evaluator.eval_hash,
        "bits_per_byte": tools.evaluator.score_sources(model.to(device_of(run.study.trainer))),
    }
    write_json(run.dir.pause(pause.phase, pause.step), record, sync=True)


def mark_pruned(run: RunDir, why: str) -> None:
    """Of a run that is paused: nobody will ask for more of it.

    Raises:
        RunHeld: if another process works on it.
    """
    if read_json(run.info).get("status") != "paused":
        return
    with run_lock(run.path):
        info = read_json(run.info)
        if info.get("status") == "paused":
            write_json(run.info, info | {"status": "pruned", "why": why}, sync=True)
