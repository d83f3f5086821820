"""Controls: the model with another bank, or with none, put back bit by bit afterwards.

Knockout (the bank's rows zeroed: how much of a score lives there?) and bank swap (its state at an
earlier boundary). Of a sharded bank every rank changes the rows that it owns: all of them enter and
leave together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from moc.config.controls import ALL, PREVIOUS, parse_knockout
from moc.config.schema import ControlConfig
from moc.errors import CheckpointError, ConfigError
from moc.model.config import ModelConfig
from moc.model.files import read_safetensors
from moc.model.memory.build import build_memory
from moc.model.transformer import Transformer

KNOCKOUT, BANK_SWAP = "knockout-", "bank_swap-"  # how the names of controls begin


def control_names(config: ControlConfig, earlier: Sequence[str], model: ModelConfig) -> list[str]:
    """What ``config`` asks of ``model`` at a boundary: ``knockout-bank``, ``knockout-top-<n>``,
    ``knockout-row-<i>``, ``bank_swap-<boundary>``.

    Nothing without memory. ``top-<n>`` needs a choice of rows: without one, all are read always. A
    single row that stands for all has only ``bank``.

    Args:
        earlier: names of the boundaries whose bank there is, in order.

    Raises:
        ConfigError: for a knockout that cannot be read.
    """
    memory = model.memory
    if memory is None:
        return []
    names, chooses = [], build_memory(model).num_picked > 0
    for word in config.knockouts:
        what = parse_knockout(word).what
        if what == "bank" or (memory.rows == "all" and (what == "row" or chooses)):
            names.append(KNOCKOUT + word)
    for word in config.bank_swap:
        if word == PREVIOUS:
            chosen = earlier[-1:]
        else:
            chosen = [boundary for boundary in earlier if word in (boundary, ALL)]
        names += [BANK_SWAP + boundary for boundary in chosen]
    return list(dict.fromkeys(names))


def apply_control(
    model: Transformer, name: str, *, banks: Mapping[str, Path], use: Mapping[str, Any]
) -> AbstractContextManager[None]:
    """The model under control ``name``, one of ``control_names``, for as long as the context lasts.

    Args:
        banks: weight files of earlier boundaries, by the boundary's name.
        use: ``memory`` of the boundary's own ``evals.json``: which rows ``top-<n>`` are.

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
            return knocked_out(model, most_picked(model, use, number))
        case "row":
            return knocked_out(model, [[number]] * len(model.banks))


def most_picked(model: Transformer, use: Mapping[str, Any], count: int) -> list[list[int]]:
    """The ``count`` rows of each bank that were picked most often, in that order.

    Picks are summed over sources and over the layers that share a bank. Rows that are always read
    are not among them; of equals, the first.

    Args:
        use: ``memory`` of a boundary's ``evals.json``.
    """
    kind = model.kind
    assert kind is not None
    picks = [[0] * kind.num_rows for _ in model.banks]
    for source in use["sources"].values():
        for layer, load in source["load"].items():
            bank = model.bank_of_layer[int(layer)]
            picks[bank] = [before + more for before, more in zip(picks[bank], load, strict=True)]
    pickable = range(kind.num_always, kind.num_rows)
    return [sorted(pickable, key=of.__getitem__, reverse=True)[:count] for of in picks]


@contextmanager
def knocked_out(model: Transformer, rows: Sequence[Sequence[int]] | None) -> Iterator[None]:
    """Zero the ``rows``, a list for every bank; None: all.

    A zeroed row is read as zero, but keeps its weight, as addressing goes on.

    Raises:
        ConfigError: for a row that a bank does not have, or a model without memory.
    """
    banks = model.banks_in_order()
    listed = [None] * len(banks) if rows is None else rows
    try:
        changes = [bank.zero(of_bank) for bank, of_bank in zip(banks, listed, strict=True)]
    except ValueError as error:
        raise ConfigError(f"knockout: {error}") from error
    with _changed(model, changes):
        yield


@contextmanager
def swapped_bank(model: Transformer, bank_state: Mapping[str, Tensor]) -> Iterator[None]:
    """Put the banks of ``bank_state``, a state dict of the same architecture, in their place.

    Raises:
        CheckpointError: if a bank is missing there or has another shape.
        ConfigError: for a model without memory.
    """
    changes = []
    for index, bank in enumerate(model.banks_in_order()):
        other = bank_state.get(f"banks.{index}.rows")
        if other is None or other.shape != bank.rows.shape:
            found = "missing" if other is None else f"of shape {tuple(other.shape)}"
            raise CheckpointError(
                f"bank swap: bank {index} of the earlier boundary is {found}, not "
                f"{tuple(bank.rows.shape)}; its weights are another model's"
            )
        changes.append(bank.take(other))
    with _changed(model, changes):
        yield


@contextmanager
def _changed(model: Transformer, changes: Sequence[Callable[[], None]]) -> Iterator[None]:
    if not model.banks:
        raise ConfigError("a control of the bank needs a model with memory")
    with ExitStack() as stack:
        for bank, change in zip(model.banks_in_order(), changes, strict=True):
            stack.enter_context(bank.changed(change))
        yield
