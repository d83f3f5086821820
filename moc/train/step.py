"""One optimizer step, on one rank or many. Needs torch alone: training and benchmark both take it.

A step is A micro-batches of B sequences of L + 1 tokens for this rank: L inputs and the token after
each. Gradients are averaged over ranks; the loss is a sum over the counted tokens of all ranks and
micro-batches, divided by their number, so a step means the same however it is cut.

C chapters.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm

from moc.model.transformer import ModelOutput, Transformer
from moc.ops.shards import like_shard, own_rows
from moc.train.bank_gradients import BankGradients, RowGradient
from moc.train.distributed import all_sum, full, world_size
from moc.train.lazy_adamw import LazyAdamW
from moc.train.routers import (
    nudge_selection,
    picks_by_layer,
    router_figures,
    router_loss,
    router_sums,
)


class StepResult(NamedTuple):
    """The same on every rank. The router's figures are over the routing groups of all ranks and
    micro-batches; None without a router."""

    loss: Tensor  # mean cross-entropy over the counted tokens, float64
    grad_norm: Tensor  # before clipping
    skipped: bool  # loss or gradient was not finite: weights and moments are what they were
    picks: Tensor | None  # (layers, C), how many groups picked each chapter
    balance_loss: Tensor | None  # (layers,), unweighted
    z_loss: Tensor | None  # (layers,), unweighted


def optimizer_step(
    model: Transformer,
    optimizer: LazyAdamW,
    tokens_ABL: Tensor,
    counted_ABL: Tensor,
    *,
    clip_norm: float,
    update: bool = True,
    backward: Callable[[Tensor], object] = Tensor.backward,
    take: Callable[[], object] | None = None,
    gradients_synced: Callable[[bool], AbstractContextManager[None]] = lambda last: nullcontext(),
) -> StepResult:
    """Accumulate gradients over the micro-batches, clip them, and update the weights.

    Args:
        tokens_ABL: int64 ids, (A, B, L + 1).
        counted_ABL: bool, (A, B, L): which of the targets, ``tokens_ABL[..., 1:]``, count.
        clip_norm: of the global gradient norm; 0 does not clip.
        update: False does all but the update, of weights and of selection biases.
        backward, take: instead of ``loss.backward()`` and ``optimizer.step()``.
        gradients_synced: around one micro-batch; with False, ranks need not exchange gradients.
    """
    num_micro = len(tokens_ABL)
    num_counted = all_sum(counted_ABL.sum()).clamp(min=1)
    nll_sum = torch.zeros((), dtype=torch.float64, device=tokens_ABL.device)
    sums_LX: list[Tensor] = []  # of the routers, one per micro-batch
    trains_bank = any(tokens_CTM.requires_grad for tokens_CTM in model.bank_tokens())
    of_banks = BankGradients(model) if trains_bank else None
    for index, (tokens_BL, counted_BL) in enumerate(zip(tokens_ABL, counted_ABL, strict=True)):
        with gradients_synced(index == num_micro - 1):
            output, slots = predict(model, tokens_BL, counted_BL, with_slots=trains_bank)
            assert output.nll is not None
            objective = output.nll * (world_size() / num_counted)
            routed = [layer for layer in output.routing if layer.logits_BGC.shape[-1]]
            if routed:
                memory = model.config.memory
                assert memory is not None
                picks_LC = picks_by_layer(routed, memory)
                objective = objective + router_loss(routed, picks_LC, memory) / num_micro
                sums_LX.append(router_sums(routed, picks_LC))
            backward(objective)
            if of_banks is not None:
                of_banks.add(slots, output.routing)
        nll_sum = nll_sum + output.nll.detach()
    rows = _give_to_banks(model, optimizer, of_banks.finish()) if of_banks is not None else {}
    grad_norm = _clip(model, rows, clip_norm)
    loss = all_sum(nll_sum) / num_counted
    skipped = not bool(torch.isfinite(loss) & torch.isfinite(grad_norm))
    figures = router_figures(all_sum(torch.stack(sums_LX).sum(0)) if sums_LX else None)
    if update and not skipped:
        optimizer.rows = rows
        (take or optimizer.step)()
        if figures["picks"] is not None:
            nudge_selection(model, figures["picks"])
    optimizer.zero_grad(set_to_none=True)
    return StepResult(loss, grad_norm, skipped, **figures)


def predict(
    model: Transformer, tokens_BL: Tensor, counted_BL: Tensor, *, with_slots: bool
) -> tuple[ModelOutput, list[Tensor]]:
    """Loss and routing of one micro-batch, and where its backward pass leaves banks' gradients."""
    inputs_BL, targets_BL = tokens_BL[:, :-1], tokens_BL[:, 1:]
    slots = model.gradient_slots(*inputs_BL.shape) if with_slots else []
    output = model(inputs_BL, targets_BL=targets_BL, counted_BL=counted_BL, slots=slots)
    return output, slots


def _give_to_banks(
    model: Transformer, optimizer: LazyAdamW, of_bank: dict[int, RowGradient]
) -> dict[Tensor, RowGradient]:
    """The rows that a lazy group updates, by parameter; of other groups they become ``grad``."""
    groups = [group for group in optimizer.param_groups if group.get("lazy")]
    lazy = {id(parameter) for group in groups for parameter in group["params"]}
    found: dict[Tensor, RowGradient] = {}
    for bank, rows in of_bank.items():
        tokens_CTM = model.bank_tokens()[bank]
        if id(tokens_CTM) in lazy:
            found[tokens_CTM] = rows
            continue
        grad_CTM = rows.dense(len(own_rows(tokens_CTM)))
        if isinstance(tokens_CTM, DTensor):
            grad_CTM = like_shard(grad_CTM, tokens_CTM, tokens_CTM.device_mesh)
        tokens_CTM.grad = grad_CTM
    return found


def _clip(model: Transformer, rows: dict[Tensor, RowGradient], limit: float) -> Tensor:
    """Clip by global norm, ``rows`` included; the norm before clipping."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    norms = [full(get_total_norm(gradients))] if gradients else []
    for tokens_CTM, row in rows.items():
        square = torch.linalg.vector_norm(row.grad_UTM).square()
        sharded = isinstance(tokens_CTM, DTensor)  # else every rank has the same rows
        norms.append((all_sum(square) if sharded else square).sqrt())
    norm = torch.linalg.vector_norm(torch.stack(norms))
    if limit:
        factor = (limit / (norm + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_(gradients, factor)
        for row in rows.values():
            row.grad_UTM.mul_(factor)
    return norm
