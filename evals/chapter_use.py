"""Which chapters a model reads, and how that changes from one state of it to the next.

N windows, L positions, C chapters.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from evals.observing import device_of, only_observing
from moc.model.router import pick_counts
from moc.model.transformer import Transformer

USED_SHARE = 0.1  # of the uniform load: a chapter with less counts as unused


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


def overlap(
    before_C: Sequence[int] | Tensor, after_C: Sequence[int] | Tensor, *, num_shared: int = 0
) -> dict[str, float]:
    """How far two counts of picks fall on the same chapters; the first ``num_shared`` are left out.

    ``mass``: sum over chapters of the smaller of the two shares of picks: 1 is the same use, 0 is
    none in common. ``jaccard``: of the two sets of used chapters, those with at least
    ``USED_SHARE`` of the load that each would have if all were picked alike.

    Raises:
        ValueError: if the counts are of different lengths, or one of them is all zero.
    """
    if len(before_C) != len(after_C):
        raise ValueError(f"{len(before_C)} chapters before and {len(after_C)} after do not compare")
    counts_2C = np.stack([np.asarray(c, dtype=float)[num_shared:] for c in (before_C, after_C)])
    totals_21 = counts_2C.sum(1, keepdims=True)
    if not totals_21.all():
        raise ValueError("no chapter was picked, so there is no use to compare")
    shares_2C = counts_2C / totals_21
    used_2C = shares_2C * shares_2C.shape[1] >= USED_SHARE
    jaccard = used_2C.all(0).sum() / used_2C.any(0).sum()
    return {"jaccard": float(jaccard), "mass": float(shares_2C.min(0).sum())}


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
