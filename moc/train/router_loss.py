"""The routers' auxiliary losses. Needs torch alone.

C chapters; a table (layers, C) has a row for each memory layer with a router.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from moc.model.config import MemoryConfig
from moc.model.memory.router import Routing, balance_loss, pick_counts, z_loss
from moc.train.distributed import all_sum, world_size


def picks_by_layer(routed: Sequence[Routing], memory: MemoryConfig) -> Tensor:
    """How many groups of a micro-batch on this rank picked each chapter: (layers, C)."""
    counts = (pick_counts(r.index_BGN, memory.num_chapters, memory.num_shared) for r in routed)
    return torch.stack(list(counts))


def router_loss(routed: Sequence[Routing], picks_LC: Tensor, memory: MemoryConfig) -> Tensor:
    """Balance and z-loss of one micro-batch, weighted and averaged over layers.

    The balance loss uses the picks of all ranks, so that its gradient does not depend on how a
    micro-batch is spread over them. Across micro-batches it is a mean of their losses.
    """
    router = memory.router
    balance = z = torch.zeros((), device=picks_LC.device)
    if router.balance_coefficient:
        shares_LC = all_sum(picks_LC).to(balance.dtype) / world_size()
        for layer, picks_C in zip(routed, shares_LC, strict=True):
            balance = balance + balance_loss(layer.probs_BGC.flatten(0, 1), picks_C)
    for layer in routed:
        z = z + z_loss(layer.logits_BGC.flatten(0, 1))
    scale = 1 / len(routed)
    return balance * router.balance_coefficient * scale + z * router.z_loss_coefficient * scale
