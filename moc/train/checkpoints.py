"""What training leaves on disk, such that a kill at any moment loses nothing but time.

A checkpoint is a folder, written under a temporary name beside its target and renamed:

    checkpoints/<phase>-<step>/  training.pt (weights, Adam moments by name, what callbacks have
                                 counted), manifest.json
    boundaries/<i>-<phase>/      model.safetensors, model.json, manifest.json [, training.pt]

A phase's last step has no checkpoint: the boundary after it takes its place.

The manifest holds the SHA-256 of every file, the phase, the step, the config hash and the
fingerprint of every token stream that the phase trains on. State is gathered by name, so a run may
continue under another strategy or number of ranks.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, cast

import torch
from torch import Tensor
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from moc.errors import CheckpointError
from moc.model.config import ModelConfig
from moc.model.files import save_model
from moc.model.transformer import Transformer
from moc.store.files import PARTIAL, whole_folder
from moc.store.manifest import check_manifest, write_manifest
from moc.train.distributed import alone, barrier, rank

_FULL = StateDictOptions(full_state_dict=True, cpu_offload=True)


def save_training_state(
    folder: Path,
    model: Transformer,
    optimizer: torch.optim.Optimizer,
    *,
    callbacks: Mapping[str, Any],
    step: int,
    **manifest: Any,
) -> None:
    """Write weights, optimizer state and ``callbacks`` (plain data and tensors by name, the same on
    all ranks) as checkpoint ``folder``; a collective call."""
    state = {
        "model": get_model_state_dict(model, options=_FULL),
        "optimizer": get_optimizer_state_dict(model, optimizer, options=_FULL),
        "callbacks": dict(callbacks),
        "step": step,
    }
    if rank() == 0:
        with alone(), whole_folder(folder) as partial:
            _save(state, partial / "training.pt")
            write_manifest(partial, step=step, **manifest)
    barrier()


def save_boundary(
    folder: Path,
    model: Transformer,
    optimizer: torch.optim.Optimizer | None,
    **manifest: Any,
) -> None:
    """Write the weights at a boundary; with ``optimizer``, its state too. A collective call."""
    weights = cast(dict[str, Tensor], get_model_state_dict(model, options=_FULL))
    state = None
    if optimizer is not None:
        state = get_optimizer_state_dict(model, optimizer, options=_FULL)
    if rank() == 0:
        with alone():
            _write_boundary(folder, weights, model.config, state, manifest)
    barrier()


def save_start(folder: Path, model: Transformer, **manifest: Any) -> None:
    """``save_boundary`` of an untrained model that no other rank has; by one process alone."""
    _write_boundary(folder, model.state_dict(), model.config, None, manifest)


def _write_boundary(
    folder: Path,
    weights: dict[str, Tensor],
    config: ModelConfig,
    optimizer: Mapping[str, Any] | None,
    manifest: Mapping[str, Any],
) -> None:
    with whole_folder(folder) as partial:
        save_model(weights, config, partial)
        if optimizer is not None:
            _save({"optimizer": optimizer}, partial / "training.pt")
        write_manifest(partial, **manifest)


def _save(state: dict[str, Any], path: Path) -> None:
    """Through Python's file: to a path, torch says of a full disk only "iostream error"."""
    with path.open("wb") as file:
        torch.save(state, file)


def load_training_state(folder: Path) -> dict[str, Any]:
    """What ``save_training_state`` wrote, on the CPU.

    Raises:
        CheckpointError: if a file is missing, does not match the manifest, or holds other objects
            than tensors and plain values; none of them is made.
    """
    check_manifest(folder)
    path = folder / "training.pt"
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError) as error:
        raise CheckpointError(
            f"{path} is no checkpoint of ours: it asks for more than tensors and plain values, and "
            f"nothing of it was run; remove {folder}"
        ) from error


def restore_optimizer(
    model: Transformer, optimizer: torch.optim.Optimizer, state: dict[str, Any]
) -> None:
    """Put saved moments back, by parameter name; a collective call under sharding.

    Settings (learning rate, weight decay) stay those of the optimizer: only its state is restored.
    A parameter without saved moments (it was frozen until now) starts afresh.
    """
    moments = dict(state["state"])
    lazy = {p for group in optimizer.param_groups if group.get("lazy") for p in group["params"]}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and name not in moments:
            zeros = torch.zeros(parameter.shape, dtype=parameter.dtype)
            step = torch.zeros(parameter.shape[:1] if parameter in lazy else ())
            moments[name] = {"step": step, "exp_avg": zeros, "exp_avg_sq": zeros.clone()}
    state = {**state, "state": moments}
    settings = [
        {key: value for key, value in group.items() if key != "params"}
        for group in optimizer.param_groups
    ]
    set_optimizer_state_dict(
        model, optimizer, state, options=StateDictOptions(full_state_dict=True)
    )
    for group, setting in zip(optimizer.param_groups, settings, strict=True):
        group.update(setting)
        for parameter in group["params"] if group["fused"] else []:
            # a state saved by an optimizer that was not fused left its step count on the CPU
            moments = optimizer.state[parameter]
            moments["step"] = moments["step"].to(parameter.device)


def checkpoints_of(folder: Path, phase: str) -> list[Path]:
    """The checkpoints of ``phase`` in ``folder``, damaged ones included, the latest first."""
    found = [path for path in folder.glob("*") if phase_of(path) == phase]
    return sorted(found, key=_step, reverse=True)


def phase_of(checkpoint: Path) -> str | None:
    """The phase of a checkpoint's folder; None if it is none."""
    name, _, step = checkpoint.name.rpartition("-")
    return name if step.isdecimal() else None


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def latest_checkpoint(folder: Path, phase: str) -> Path | None:
    """The intact checkpoint of ``phase`` with the highest step; damaged ones are passed over.

    Raises:
        CheckpointError: if checkpoints exist and none is intact.
    """
    problems = []
    for path in checkpoints_of(folder, phase):
        try:
            check_manifest(path)
        except CheckpointError as error:
            problems.append(str(error))
            continue
        if problems and rank() == 0:
            why = "; ".join(problems)
            print(f"passed over: {why}; going on from step {_step(path)}", flush=True)
        return path
    if problems:
        raise CheckpointError(f"no intact checkpoint: {problems[0]}; remove {folder} to start over")
    return None


def prune_checkpoints(folder: Path, phase: str, keep: int) -> None:
    """Remove all but the last ``keep`` checkpoints of ``phase``, and leftovers of killed writes."""
    for path in folder.glob(f"*{PARTIAL}"):
        shutil.rmtree(path, ignore_errors=True)
    for path in checkpoints_of(folder, phase)[keep:]:
        shutil.rmtree(path)
