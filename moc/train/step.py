"""One optimizer step, on one rank or many. Needs torch alone: training and benchmark both take it.

A step is A micro-batches of B sequences of L + 1 tokens for this rank: L inputs and the token after
each. Gradients are averaged over ranks; the loss is a sum over the counted tokens of all ranks and
micro-batches, divided by their number, so a step means the same however it is cut.

R rows of a bank.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from moc.model.transformer import ModelOutput, Transformer
from moc.ops.shards import is_sharded, like_shard, own_rows, whole
from moc.train.addresses import (
    address_figures,
    address_sums,
    commit_statistics,
    nudge_selection,
    router_loss,
    use_by_layer,
)
from moc.train.bank_gradients import BankGradients, RowGradient
from moc.train.distributed import all_sum, world_size
from moc.train.lazy_adamw import LazyAdamW


class StepResult(NamedTuple):
    """The same on every rank. Use, and what a router lost, are over the routing groups of all ranks
    and micro-batches; None where nothing is chosen, or without a router."""

    loss: Tensor  # mean cross-entropy over the counted tokens, float64
    grad_norm: Tensor  # before clipping
    # loss or gradient was not finite, or not accepted: weights and moments are what they were
    skipped: bool
    use: Tensor | None  # (layers, R), how many groups picked each row
    balance_loss: Tensor | None  # (layers,), unweighted
    z_loss: Tensor | None  # (layers,), unweighted


def optimizer_step(
    model: Transformer,
    optimizer: LazyAdamW,
    tokens_ABL: Tensor,
    counted_ABL: Tensor,
    *,
    pool_ABL: Tensor | None = None,
    clip_norm: float,
    update: bool = True,
    accept: Callable[[float, float], bool] = lambda loss, grad_norm: True,
    backward: Callable[[Tensor], object] = Tensor.backward,
    take: Callable[[], object] | None = None,
    gradients_synced: Callable[[bool], AbstractContextManager[None]] = lambda last: nullcontext(),
) -> StepResult:
    """Accumulate gradients over the micro-batches, clip them, and update the weights.

    Args:
        tokens_ABL: int64 ids, (A, B, L + 1).
        counted_ABL: bool, (A, B, L): which of the targets, ``tokens_ABL[..., 1:]``, count.
        pool_ABL: bool, (A, B, L): which inputs ``sequence`` routing pools; None: all.
        clip_norm: of the global gradient norm; 0 does not clip.
        update: False does all but the update, of weights and of selection biases.
        accept: asked once, with a finite loss and gradient norm; False skips the update.
        backward, take: instead of ``loss.backward()`` and ``optimizer.step()``.
        gradients_synced: around one micro-batch; with False, ranks need not exchange gradients.
    """
    num_micro = len(tokens_ABL)
    num_counted = all_sum(counted_ABL.sum()).clamp(min=1)
    nll_sum = torch.zeros((), dtype=torch.float64, device=tokens_ABL.device)
    sums_LX: list[Tensor] = []  # of the addresses, one per micro-batch
    kind = model.kind
    trains_bank = any(bank_RX.requires_grad for bank_RX in model.bank_rows())
    of_banks = BankGradients(model) if trains_bank else None
    for index, (tokens_BL, counted_BL) in enumerate(zip(tokens_ABL, counted_ABL, strict=True)):
        with gradients_synced(index == num_micro - 1):
            pool_BL = None if pool_ABL is None else pool_ABL[index]
            output, slots = predict(model, tokens_BL, counted_BL, pool_BL, with_slots=trains_bank)
            assert output.nll is not None
            objective = output.nll * (world_size() / num_counted)
            if kind is not None and kind.num_picked:
                use_LR = use_by_layer(output.addresses, kind)
                if kind.router is not None:
                    loss = router_loss(output.addresses, use_LR, kind)
                    objective = objective + loss / num_micro
                sums_LX.append(address_sums(output.addresses, use_LR))
            backward(objective)
            if of_banks is not None:
                of_banks.add(slots, output.addresses)
        nll_sum = nll_sum + output.nll.detach()
    rows = _give_to_banks(model, optimizer, of_banks.finish()) if of_banks is not None else {}
    grad_norm = _clip(model, rows, clip_norm)
    loss = all_sum(nll_sum) / num_counted
    finite = bool(torch.isfinite(loss) & torch.isfinite(grad_norm))
    skipped = not (finite and accept(float(loss), float(grad_norm)))
    sums = all_sum(torch.stack(sums_LX).sum(0)) if sums_LX else None
    figures = address_figures(sums, kind.num_rows if kind else 0)
    if update and not skipped:
        optimizer.rows = rows
        (take or optimizer.step)()
        if figures.use is not None:
            nudge_selection(model, figures.use)
        commit_statistics(model)
    optimizer.zero_grad(set_to_none=True)
    return StepResult(loss, grad_norm, skipped, **figures._asdict())


def predict(
    model: Transformer,
    tokens_BL: Tensor,
    counted_BL: Tensor,
    pool_BL: Tensor | None = None,
    *,
    with_slots: bool,
) -> tuple[ModelOutput, list[Tensor]]:
    """Loss and addresses of one micro-batch, and where its backward pass leaves rows' gradients."""
    inputs_BL, targets_BL = tokens_BL[:, :-1], tokens_BL[:, 1:]
    slots = model.gradient_slots(*inputs_BL.shape) if with_slots else []
    counted = {"targets_BL": targets_BL, "counted_BL": counted_BL}
    output = model(inputs_BL, **counted, pool_BL=pool_BL, slots=slots)
    return output, slots


def _give_to_banks(
    model: Transformer, optimizer: LazyAdamW, of_bank: dict[int, RowGradient]
) -> dict[Tensor, RowGradient]:
    """The rows that a lazy group updates, by parameter; of other groups they become ``grad``."""
    groups = [group for group in optimizer.param_groups if group.get("lazy")]
    lazy = {id(parameter) for group in groups for parameter in group["params"]}
    found: dict[Tensor, RowGradient] = {}
    for bank, rows in of_bank.items():
        bank_RX = model.bank_rows()[bank]
        if id(bank_RX) in lazy:
            found[bank_RX] = rows
            continue
        grad_RX = rows.dense(len(own_rows(bank_RX)))
        if is_sharded(bank_RX):
            grad_RX = like_shard(grad_RX, bank_RX, bank_RX.device_mesh)
        bank_RX.grad = grad_RX
    return found


def _clip(model: Transformer, rows: dict[Tensor, RowGradient], limit: float) -> Tensor:
    """Clip by global norm, ``rows`` included; the norm before clipping."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    norms = [whole(get_total_norm(gradients))] if gradients else []
    for bank_RX, row in rows.items():
        square = torch.linalg.vector_norm(row.grad_UX).square()
        sharded = is_sharded(bank_RX)  # else every rank has the same rows
        norms.append((all_sum(square) if sharded else square).sqrt())
    norm = torch.linalg.vector_norm(torch.stack(norms))
    if limit:
        factor = (limit / (norm + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_(gradients, factor)
        for row in rows.values():
            row.grad_UX.mul_(factor)
    return norm
