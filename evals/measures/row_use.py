"""Which rows of its bank a model reads, how evenly each position, and how far addresses have moved.

N windows, L positions, R rows.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from evals.scoring.observing import device_of, only_observing
from moc.model.memory.bank import count_use
from moc.model.transformer import Transformer

# of an address: what is learned, and not what is counted; norms start at one and say little
_LEARNED = re.compile(r"blocks\.(\d+)\.memory\.address\.(?:.*\.)?(weight|bias|half_keys)$")


@dataclass(frozen=True)
class RowUse:
    """By memory layer; empty where nothing is chosen, or measured."""

    load: dict[int, Tensor]  # how many routing groups picked each row: (R,) int64, on the CPU
    health: dict[int, dict[str, float]]  # of ``Address.health``, over the first batch


def row_use(model: Transformer, tokens_NL: Tensor, *, batch_size: int) -> RowUse:
    """Over windows without padding. Rows that are always read are never picked."""
    kind = model.kind
    if kind is None:
        return RowUse({}, {})
    layers = model.config.memory_layers()
    load = {layer: torch.zeros(kind.num_rows, dtype=torch.int64) for layer in layers}
    health: dict[int, dict[str, float]] = {}
    device = device_of(model)
    with only_observing(model):
        for tokens_BL in tokens_NL.split(batch_size):
            addresses = model(tokens_BL.to(device), measure=not health).addresses
            for layer, address in zip(layers, addresses, strict=True):
                load[layer] += count_use(address.index_BGN, kind.num_rows, kind.num_always).cpu()
                health.setdefault(layer, {name: float(x) for name, x in address.health.items()})
    return RowUse(load if kind.num_picked else {}, health)


def address_drift(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> dict[int, float]:
    """``|after - before| / |before|`` of all that each layer's address has learned together, by
    layer, from two state dicts of one model."""
    names: dict[int, list[str]] = {}
    for name in before:
        if (found := _LEARNED.match(name)) and "norm." not in name:
            names.setdefault(int(found[1]), []).append(name)
    drift = {}
    for layer, of_layer in names.items():
        old, new = (torch.cat([s[n].double().flatten() for n in of_layer]) for s in (before, after))
        drift[layer] = float((new - old).norm() / old.norm())
    return drift
