"""Controls: the model with another bank, or with none, put back bit by bit afterwards.

Knockout (the bank's tokens zeroed: how much of a score lives there?) and bank swap (its state at an
earlier boundary). Of a sharded bank every rank changes the chapters that it owns: all of them enter
and leave together.

C chapters, T tokens per chapter, M memory width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moc.config.controls import ALL, PREVIOUS, parse_knockout
from moc.config.schema import ControlConfig
from moc.errors import CheckpointError, ConfigError
from moc.model.config import ModelConfig
from moc.model.files import read_safetensors
from moc.model.transformer import Transformer
from moc.ops.shards import own_rows, owned_chapters

KNOCKOUT, BANK_SWAP = "knockout-", "bank_swap-"  # how the names of controls begin


def control_names(config: ControlConfig, earlier: Sequence[str], model: ModelConfig) -> list[str]:
    """What ``config`` asks of ``model`` at a boundary: ``knockout-bank``, ``knockout-top-<n>``,
    ``knockout-chapter-<i>``, ``bank_swap-<boundary>``.

    Nothing without memory. ``top-<n>`` needs a router: without one, every chapter is read always.

    Args:
        earlier: names of the boundaries whose bank there is, in order.

    Raises:
        ConfigError: for a knockout that cannot be read.
    """
    memory = model.memory
    if memory is None:
        return []
    names = []
    for word in config.knockouts:
        if parse_knockout(word).what != "top" or memory.num_routed is not None:
            names.append(KNOCKOUT + word)
    for word in config.bank_swap:
        if word == PREVIOUS:
            chosen = earlier[-1:]
        else:
            chosen = [boundary for boundary in earlier if word in (boundary, ALL)]
        names += [BANK_SWAP + boundary for boundary in chosen]
    return list(dict.fromkeys(names))


def apply_control(
    model: Transformer, name: str, *, banks: Mapping[str, Path], routing: Mapping[str, Any]
) -> AbstractContextManager[None]:
    """The model under control ``name``, one of ``control_names``, for as long as the context lasts.

    Args:
        banks: weight files of earlier boundaries, by the boundary's name.
        routing: of the boundary's own ``evals.json``; which chapters ``top-<n>`` are.

    Raises:
        ConfigError: for a name that stands for nothing here.
        CheckpointError: if a weight file is damaged or of another shape.
    """
    if name.startswith(BANK_SWAP) and (boundary := name.removeprefix(BANK_SWAP)) in banks:
        return swapped_bank(model, read_safetensors(banks[boundary]))
    if not name.startswith(KNOCKOUT):
        raise ConfigError(f"no control {name!r} here; there are banks of {', '.join(banks)}")
    what, number = parse_knockout(name.removeprefix(KNOCKOUT))
    match what:
        case "bank":
            return knocked_out(model, None)
        case "top":
            return knocked_out(model, most_picked(model, routing, number))
        case "chapter":
            return knocked_out(model, [[number]] * len(model.banks))


def most_picked(model: Transformer, routing: Mapping[str, Any], count: int) -> list[list[int]]:
    """The ``count`` chapters of each bank that were picked most often, in that order.

    Picks are summed over sources and over the layers that share a bank. Shared chapters are read
    always and not among them; of equals, the first.

    Args:
        routing: of a boundary's ``evals.json``.
    """
    memory = model.config.memory
    assert memory is not None
    picks = [[0] * memory.num_chapters for _ in model.banks]
    for source in routing["sources"].values():
        for layer, load in source["load"].items():
            bank = model.bank_of_layer[int(layer)]
            picks[bank] = [before + more for before, more in zip(picks[bank], load, strict=True)]
    routed = range(memory.num_shared, memory.num_chapters)
    return [sorted(routed, key=of.__getitem__, reverse=True)[:count] for of in picks]


@contextmanager
def knocked_out(model: Transformer, chapters: Sequence[Sequence[int]] | None) -> Iterator[None]:
    """Zero the tokens of ``chapters``, a list for every bank; None: of all.

    A zeroed token is read as zero, but keeps its share of the attention, as routing goes on.

    Raises:
        ConfigError: for a chapter that a bank does not have, or a model without memory.
    """
    banks = model.bank_tokens()
    for bank_CTM, listed in zip(banks, chapters or [[]] * len(banks), strict=True):
        for chapter in listed:
            if not 0 <= chapter < len(bank_CTM):
                raise ConfigError(
                    f"knockout: no chapter {chapter}; the bank has 0 to {len(bank_CTM) - 1}"
                )

    def zero(index: int, own_CTM: Tensor, owned: range) -> None:
        if chapters is None:
            own_CTM.zero_()
        else:
            own_CTM[[chapter - owned.start for chapter in chapters[index] if chapter in owned]] = 0

    with _changed_banks(model, zero):
        yield


@contextmanager
def swapped_bank(model: Transformer, bank_state: Mapping[str, Tensor]) -> Iterator[None]:
    """Put the banks of ``bank_state``, a state dict of the same architecture, in their place.

    Raises:
        CheckpointError: if a bank is missing there or has another shape.
        ConfigError: for a model without memory.
    """
    others = []
    for index, bank_CTM in enumerate(model.bank_tokens()):
        other = bank_state.get(f"banks.{index}.tokens")
        if other is None or other.shape != bank_CTM.shape:
            found = "missing" if other is None else f"of shape {tuple(other.shape)}"
            raise CheckpointError(
                f"bank swap: bank {index} of the earlier boundary is {found}, not "
                f"{tuple(bank_CTM.shape)}; its weights are another model's"
            )
        others.append(other)

    def swap(index: int, own_CTM: Tensor, owned: range) -> None:
        own_CTM.copy_(others[index][owned.start : owned.stop])

    with _changed_banks(model, swap):
        yield


@contextmanager
def _changed_banks(
    model: Transformer, change: Callable[[int, Tensor, range], None]
) -> Iterator[None]:
    """``change(i, own, owned)`` of bank i for the time of the context, then every bit as it was.

    ``own`` are the chapters ``owned`` of the bank: this rank's shard, or all.
    """
    if not model.banks:
        raise ConfigError("a control of the bank needs a model with memory")
    owned = [owned_chapters(bank_CTM) for bank_CTM in model.bank_tokens()]
    own = [own_rows(bank_CTM) for bank_CTM in model.bank_tokens()]
    kept = [own_CTM.detach().clone() for own_CTM in own]
    try:
        with torch.no_grad():
            for index, own_CTM in enumerate(own):
                change(index, own_CTM, owned[index])
        yield
    finally:
        with torch.no_grad():
            for own_CTM, before in zip(own, kept, strict=True):
                own_CTM.copy_(before)
