"""Addresses in training: use of rows, auxiliary losses of routers, balancing. Needs torch
alone.

X routing groups, R rows, C = R rows that a router scores; a table (layers, ...) has a row for each
memory layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from moc.model.memory.bank import count_use
from moc.model.memory.chapters.router import Router, balance_loss, z_loss
from moc.model.memory.query_norm import QueryBatchNorm
from moc.model.memory.seam import Address, Kind
from moc.model.transformer import Block, Transformer
from moc.train.distributed import all_sum, world_size


def routers(model: Transformer) -> dict[int, Router]:
    """The learned routers of ``model`` by layer, in depth order."""
    found = {}
    for layer, block in enumerate(model.blocks):
        if isinstance(block, Block) and block.memory is not None:
            router = getattr(block.memory.address, "router", None)
            if isinstance(router, Router):
                found[layer] = router
    return found


def use_by_layer(addresses: Sequence[Address], kind: Kind) -> Tensor:
    """How many groups of a micro-batch on this rank picked each row: (layers, R)."""
    return torch.stack([count_use(a.index_BGN, kind.num_rows, kind.num_always) for a in addresses])


def router_loss(addresses: Sequence[Address], use_LC: Tensor, kind: Kind) -> Tensor:
    """Balance and z-loss of one micro-batch, weighted and averaged over layers.

    The balance loss uses the picks of all ranks, so that its gradient does not depend on how a
    micro-batch is spread over them. Across micro-batches it is a mean of their losses.
    """
    router = kind.router
    assert router is not None
    balance = z = torch.zeros((), device=use_LC.device)
    if router.balance_coefficient:
        shares_LC = all_sum(use_LC).to(balance.dtype) / world_size()
        for address, picks_C in zip(addresses, shares_LC, strict=True):
            assert address.probs_BGC is not None
            balance = balance + balance_loss(address.probs_BGC.flatten(0, 1), picks_C)
    for address in addresses:
        assert address.logits_BGC is not None
        z = z + z_loss(address.logits_BGC.flatten(0, 1))
    scale = 1 / len(addresses)
    return balance * router.balance_coefficient * scale + z * router.z_loss_coefficient * scale


def address_sums(addresses: Sequence[Address], use_LR: Tensor) -> Tensor:
    """What ``address_figures`` needs of one micro-batch on this rank: float64, (layers, R), or
    (layers, 2 R + 2) with routers."""
    if any(address.logits_BGC is None for address in addresses):
        return use_LR.double()
    rows = []
    for address, picks_C in zip(addresses, use_LR, strict=True):
        assert address.logits_BGC is not None and address.probs_BGC is not None
        # summed in float64, but not copied to it: with scope token this is one row per position
        logits_XC = address.logits_BGC.detach().flatten(0, 1)
        probs_C = address.probs_BGC.detach().flatten(0, 1).sum(0, dtype=torch.float64)
        squares_1 = logits_XC.logsumexp(-1).double().square().sum()[None]
        groups_1 = torch.full_like(squares_1, len(logits_XC))
        rows.append(torch.cat((picks_C, probs_C, squares_1, groups_1)))
    return torch.stack(rows)


class AddressFigures(NamedTuple):
    """Of each memory layer over a whole step."""

    use: Tensor | None = None  # (layers, R), how many groups picked each row; None without a choice
    balance_loss: Tensor | None = None  # (layers,), unweighted; None without a router
    z_loss: Tensor | None = None  # (layers,), likewise


def address_figures(sums: Tensor | None, num_rows: int) -> AddressFigures:
    """
    Args:
        sums: (layers, R), the use of each row; with routers (layers, 2 R + 2), over routing groups:
            that, the rows' probabilities, logsumexp(logits)^2, and the number of groups. None
            where nothing is chosen.
    """
    if sums is None:
        return AddressFigures()
    use_LR, probs_LC = sums[:, :num_rows], sums[:, num_rows:-2]
    if sums.shape[1] == num_rows:
        return AddressFigures(use_LR.long())
    squares_L, groups_L = sums[:, -2], sums[:, -1]
    balance_L = num_rows * (use_LR * probs_LC).sum(-1) / groups_L.square()
    return AddressFigures(use_LR.long(), balance_L, squares_L / groups_L)


def nudge_selection(model: Transformer, use_LC: Tensor) -> None:
    """Balance without a loss: every training router's selection bias moves by what the step's
    groups picked."""
    if model.kind is None or model.kind.router is None:
        return
    for router, picks_C in zip(routers(model).values(), use_LC, strict=True):
        if router.selection_bias is not None and router.linear.weight.requires_grad:
            routed = slice(router.num_shared, None)
            nudge(router.selection_bias[routed], picks_C[routed], router.config.bias_rate)


def nudge(bias_C: Tensor, picks_C: Tensor, rate: float) -> None:
    """Move the bias of routed chapters, in place, by ``rate`` toward even use: up for those picked
    less often than the mean, down for the others (arXiv 2408.15664, algorithm 1)."""
    above_C = picks_C * picks_C.numel() - picks_C.sum()  # picks minus their mean, exact in integers
    bias_C -= rate * above_C.sign()


def commit_statistics(model: Transformer) -> None:
    """Let batch norms of queries learn what the step's last micro-batch showed, over all ranks."""
    for module in model.modules():
        if isinstance(module, QueryBatchNorm):
            module.commit(all_sum(module.seen_2Q) / world_size())
