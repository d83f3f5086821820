"""Routers in training: auxiliary losses, figures of a step, balancing by bias. Needs torch alone.

X routing groups, C chapters; a table (layers, C) has a row for each memory layer with a router.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from moc.model.config import MemoryConfig
from moc.model.memory.router import Router, Routing, balance_loss, pick_counts, z_loss
from moc.model.transformer import Block, Transformer
from moc.train.distributed import all_sum, world_size


def routers(model: Transformer) -> dict[int, Router]:
    """The routers of ``model`` by layer, in depth order."""
    return {
        layer: block.memory.router
        for layer, block in enumerate(model.blocks)
        if isinstance(block, Block) and block.memory is not None and block.memory.router is not None
    }


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


def router_sums(routed: Sequence[Routing], picks_LC: Tensor) -> Tensor:
    """What ``router_figures`` needs of one micro-batch on this rank: (layers, 2 C + 2), float64."""
    rows = []
    for layer, picks_C in zip(routed, picks_LC, strict=True):
        # summed in float64, but not copied to it: with scope token this is one row per position
        logits_XC = layer.logits_BGC.detach().flatten(0, 1)
        probs_C = layer.probs_BGC.detach().flatten(0, 1).sum(0, dtype=torch.float64)
        squares_1 = logits_XC.logsumexp(-1).double().square().sum()[None]
        groups_1 = torch.full_like(squares_1, len(logits_XC))
        rows.append(torch.cat((picks_C, probs_C, squares_1, groups_1)))
    return torch.stack(rows)


def router_figures(sums: Tensor | None) -> dict[str, Tensor | None]:
    """Of each memory layer over a whole step: ``picks`` (layers, C), how many groups picked each
    chapter, and the unweighted ``balance_loss`` and ``z_loss`` (layers,).

    Args:
        sums: (layers, 2 C + 2), over routing groups: picks of each chapter, their probabilities,
            logsumexp(logits)^2, and the number of groups. None without a router.
    """
    if sums is None:
        return {"picks": None, "balance_loss": None, "z_loss": None}
    num_chapters = sums.shape[1] // 2 - 1
    picks_LC, probs_LC = sums[:, :num_chapters], sums[:, num_chapters:-2]
    squares_L, groups_L = sums[:, -2], sums[:, -1]
    return {
        "picks": picks_LC.long(),
        "balance_loss": num_chapters * (picks_LC * probs_LC).sum(-1) / groups_L.square(),
        "z_loss": squares_L / groups_L,
    }


def nudge_selection(model: Transformer, picks_LC: Tensor) -> None:
    """Balance without a loss: every training router's selection bias moves by what the step's
    groups picked."""
    for router, picks_C in zip(routers(model).values(), picks_LC, strict=True):
        if router.selection_bias is not None and router.linear.weight.requires_grad:
            routed = slice(router.num_shared, None)
            nudge(router.selection_bias[routed], picks_C[routed], router.config.bias_rate)


def nudge(bias_C: Tensor, picks_C: Tensor, rate: float) -> None:
    """Move the bias of routed chapters, in place, by ``rate`` toward even use: up for those picked
    less often than the mean, down for the others (arXiv 2408.15664, algorithm 1)."""
    above_C = picks_C * picks_C.numel() - picks_C.sum()  # picks minus their mean, exact in integers
    bias_C -= rate * above_C.sign()
