"""Which chapters a model reads, and how far its routers have moved.

N windows, L positions, C chapters.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from evals.scoring.observing import device_of, only_observing
from moc.model.memory.router import pick_counts
from moc.model.transformer import Transformer


def chapter_use(model: Transformer, tokens_NL: Tensor, *, batch_size: int) -> dict[int, Tensor]:
    """How many routing groups of the windows picked each chapter: (C,) int64 on the CPU, by memory
    layer. Shared chapters are never picked; empty without a router. Windows are without padding.
    """
    memory = model.config.memory
    if memory is None or memory.num_routed is None:
        return {}
    layers = model.config.memory_layers()
    use = {layer: torch.zeros(memory.num_chapters, dtype=torch.int64) for layer in layers}
    device = device_of(model)
    with only_observing(model):
        for tokens_BL in tokens_NL.split(batch_size):
            routing = model(tokens_BL.to(device)).routing
            for layer, routed in zip(layers, routing, strict=True):
                counts_C = pick_counts(routed.index_BGN, memory.num_chapters, memory.num_shared)
                use[layer] += counts_C.cpu()
    return use


def router_drift(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> dict[int, float]:
    """``|after - before| / |before|`` of each router's weight and bias together, by layer, from two
    state dicts of one model."""
    drift = {}
    for name in before:
        found = re.fullmatch(r"blocks\.(\d+)\.memory\.router\.linear\.weight", name)
        if found is None:
            continue
        names = (name, name.removesuffix("weight") + "bias")
        old, new = (torch.cat([s[n].double().flatten() for n in names]) for s in (before, after))
        drift[int(found[1])] = float((new - old).norm() / old.norm())
    return drift
