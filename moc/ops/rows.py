"""Rows taken from a bank, and copies of projected chapters for routing groups.

R rows of a bank, U of them taken, X their shape; of chapters: T tokens each, J key/value heads, E
head dim, X groups, N chapters per group, P = X * N.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from moc.ops.shards import fetch_rows, is_sharded

_DOT_ROWS = 64  # rows that are taken once more at a time, to stay in a CPU's caches


def take_rows(bank_RX: Tensor, row_U: Tensor, slot_UX: Tensor | None = None) -> Tensor:
    """The rows ``row_U``, each at most once and ascending where that is all: (U, X).

    A sharded bank is a DTensor, and this a collective call; ``row_U`` is then ascending.

    Args:
        slot_UX: takes the gradient in the bank's place, in its first rows; the further ones are
            left undefined.
    """
    if is_sharded(bank_RX):
        for_bank = slot_UX is None and torch.is_grad_enabled() and bank_RX.requires_grad
        assert not for_bank, (
            "gradients of a sharded bank go to slots: pass Transformer.gradient_slots, freeze the "
            "bank, or call under torch.no_grad"
        )
        taken_UX = fetch_rows(bank_RX, row_U)
        return taken_UX if slot_UX is None else _into_slot(taken_UX, None, slot_UX)
    if slot_UX is None:
        return bank_RX if len(row_U) == len(bank_RX) else bank_RX.index_select(0, row_U)
    return _into_slot(bank_RX.detach(), row_U, slot_UX)


def _into_slot(rows_RX: Tensor, row_U: Tensor | None, slot_UX: Tensor) -> Tensor:
    """Rows ``row_U``, or all, whose gradient goes to the slot."""
    taken_UX: Tensor = _IntoSlot.apply(rows_RX, row_U, slot_UX)
    return taken_UX


class _IntoSlot(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows_RX: Tensor, row_U: Tensor | None, slot_UX: Tensor) -> Tensor:
        ctx.num_rows = len(slot_UX)
        return rows_RX.view_as(rows_RX) if row_U is None else rows_RX.index_select(0, row_U)

    @staticmethod
    def backward(ctx: Any, grad_UX: Tensor) -> tuple[None, None, Tensor]:
        if len(grad_UX) == ctx.num_rows:
            return None, None, grad_UX
        grad_slot_UX = grad_UX.new_empty(ctx.num_rows, *grad_UX.shape[1:])
        grad_slot_UX[: len(grad_UX)] = grad_UX
        return None, None, grad_slot_UX


def take(chapters_UTJE: Tensor, row_XN: Tensor, weight_XN: Tensor | None = None) -> Tensor:
    """Each group's chapters, times their weights, which may be wider: (X, N, T, J, E)."""
    weight_P = None if weight_XN is None else weight_XN.flatten()
    taken_PY: Tensor = _Take.apply(chapters_UTJE.flatten(1), row_XN.flatten(), weight_P)
    return taken_PY.view(*row_XN.shape, *chapters_UTJE.shape[1:])


class _Take(torch.autograd.Function):
    """Rows of a table, each times a weight, in one pass; their gradients likewise, no atomics.

    U rows of the table, P rows taken, Y values in each.
    """

    @staticmethod
    def forward(ctx: Any, table_UY: Tensor, row_P: Tensor, weight_P: Tensor | None) -> Tensor:
        ctx.save_for_backward(table_UY if weight_P is not None else None, row_P, weight_P)
        ctx.num_rows = len(table_UY)
        if weight_P is None:
            return table_UY.index_select(0, row_P)
        if weight_P.dtype != table_UY.dtype:  # a rounded weight would move a chapter's every score
            return table_UY.index_select(0, row_P).mul_(weight_P[:, None])
        return F.embedding_bag(
            row_P[:, None], table_UY, mode="sum", per_sample_weights=weight_P[:, None]
        )

    @staticmethod
    def backward(ctx: Any, grad_PY: Tensor) -> tuple[Tensor, None, Tensor | None]:
        table_UY, row_P, weight_P = ctx.saved_tensors
        order_P = row_P.argsort(stable=True)
        count_U = row_P.new_zeros(ctx.num_rows).scatter_add_(0, row_P, torch.ones_like(row_P))
        grad_table_UY = F.embedding_bag(
            order_P,
            grad_PY.contiguous(),
            count_U.cumsum(0) - count_U,
            mode="sum",
            per_sample_weights=None if weight_P is None else weight_P[order_P].to(grad_PY.dtype),
        )
        grad_weight_P = None
        if weight_P is not None and ctx.needs_input_grad[2]:
            rows = zip(grad_PY.split(_DOT_ROWS), row_P.split(_DOT_ROWS), strict=True)
            dots = [torch.linalg.vecdot(grad, table_UY.index_select(0, row)) for grad, row in rows]
            grad_weight_P = torch.cat(dots).to(weight_P.dtype)
        return grad_table_UY, None, grad_weight_P
