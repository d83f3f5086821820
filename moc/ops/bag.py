"""An embedding-bag over rows of a bank: for every position, a weighted sum of the rows it reads.

R rows of the bank, U distinct rows that a batch reads, X positions, N rows read by each, D width,
P = X * N rows read in all.
"""

from __future__ import annotations

import functools
import warnings
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from moc.ops.rows import take_rows
from moc.ops.shards import is_sharded

_CHUNK_ROWS = 512  # rows of a gradient that stay in a CPU's caches until they are copied


def weighted_rows(
    bank_RD: Tensor,
    row_U: Tensor | None,
    index_XN: Tensor,
    weight_XN: Tensor,
    slot_UD: Tensor | None = None,
) -> Tensor:
    """``sum_n weight_xn * bank[row_U[index_xn]]``: (X, D), in autocast's dtype or else the bank's.

    The weights are taken, and the sum is made, in the bank's dtype. A sharded bank makes this a
    collective call (see ``take_rows``).

    Args:
        row_U: the rows read, each once, ascending; there may be others among them. None, unless
            ``needs_distinct_rows``: ``index_XN`` is of the bank's rows.
        index_XN: which of ``row_U``.
        slot_UD: takes the gradient in the bank's place, in its first rows; the further ones are
            left undefined. Nothing of the bank's size comes into being.
    """
    table_RD, receiver_UD, row_XN = bank_RD, slot_UD, index_XN
    if row_U is None:
        assert not needs_distinct_rows(bank_RD, slot_UD)
    elif is_sharded(bank_RD) or _takes_gradient(bank_RD, slot_UD):
        table_RD = receiver_UD = take_rows(bank_RD, row_U, slot_UD)
    else:  # without a copy of the rows: 29 ms against 92 (see below)
        row_XN = row_U[index_XN]
    table_RD = table_RD.detach()
    weight_XN = weight_XN.to(table_RD.dtype)
    if _has_sampled_products(table_RD, row_XN):
        out_XD: Tensor = _Bag.apply(table_RD, row_XN, weight_XN)
    else:
        out_XD = F.embedding_bag(row_XN, table_RD, mode="sum", per_sample_weights=weight_XN)
    if row_U is not None and receiver_UD is not None and receiver_UD.requires_grad:
        out_XD = _GradientOfRows.apply(out_XD, receiver_UD, index_XN, weight_XN, len(row_U))
    device = out_XD.device.type
    if torch.is_autocast_enabled(device):
        out_XD = out_XD.to(torch.get_autocast_dtype(device))
    return out_XD


def needs_distinct_rows(bank_RD: Tensor, slot_UD: Tensor | None) -> bool:
    """Whether rows are fetched, or have gradients; else finding the distinct ones, which takes time
    that grows with the bank, is of no use."""
    return slot_UD is not None or is_sharded(bank_RD) or _takes_gradient(bank_RD, slot_UD)


def _takes_gradient(bank_RD: Tensor, slot_UD: Tensor | None) -> bool:
    return slot_UD is None and torch.is_grad_enabled() and bank_RD.requires_grad


# X 2048, N 64, R 65536, D 256, float32, rows drawn evenly, one thread of a CPU, milliseconds: in
# all 135, against 250 to 280 by take_rows and embedding_bag with its own gradients. Weights'
# gradient: 27 by sampled_addmm, 57 by embedding_bag's own, 48 to 90 by gathered dots. Rows'
# gradient: 65 sorted and summed by chunks, 118 summed and copied to the slot, 102 by a sparse
# matrix, 120 to 250 by index_add; fresh pages, 64 MB, are 51 of them: hence a slot's rows that
# nobody reads stay untouched.


def _has_sampled_products(table_RD: Tensor, row_XN: Tensor) -> bool:
    if table_RD.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    # a sparse matrix is refused more entries than it has places
    fits = row_XN.shape[1] <= len(table_RD)
    return fits and table_RD.dtype in (torch.float32, torch.float64)


class _Bag(torch.autograd.Function):
    """``F.embedding_bag`` with a faster gradient of the weights, and none of the table."""

    @staticmethod
    def forward(ctx: Any, table_RD: Tensor, row_XN: Tensor, weight_XN: Tensor) -> Tensor:
        ctx.save_for_backward(table_RD, row_XN, weight_XN)
        return F.embedding_bag(row_XN, table_RD, mode="sum", per_sample_weights=weight_XN)

    @staticmethod
    def backward(ctx: Any, grad_XD: Tensor) -> tuple[None, None, Tensor]:
        table_RD, row_XN, weight_XN = ctx.saved_tensors
        _accept_sparse_tensors()
        end_X = torch.arange(0, row_XN.numel() + 1, row_XN.shape[1])
        shape = len(row_XN), len(table_RD)
        pattern = torch.sparse_csr_tensor(
            end_X, row_XN.flatten(), weight_XN.flatten(), shape, check_invariants=False
        )
        grad = torch.sparse.sampled_addmm(pattern, grad_XD.contiguous(), table_RD.T, beta=0)
        return None, None, grad.values().view_as(weight_XN)


@functools.cache
def _accept_sparse_tensors() -> None:
    """PyTorch says once that they are in beta. What is used of them here is tested."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        torch.eye(1).to_sparse_csr()


class _GradientOfRows(torch.autograd.Function):
    """Leaves the sums as they are; their gradient's share of each row goes to the receiver."""

    @staticmethod
    def forward(
        ctx: Any,
        out_XD: Tensor,
        receiver_UD: Tensor,
        index_XN: Tensor,
        weight_XN: Tensor,
        num_rows: int,
    ) -> Tensor:
        ctx.save_for_backward(index_XN, weight_XN)
        ctx.shape, ctx.num_rows = receiver_UD.shape, num_rows
        return out_XD.view_as(out_XD)

    @staticmethod
    def backward(ctx: Any, grad_XD: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        index_XN, weight_XN = ctx.saved_tensors
        index_P, grad_XD = index_XN.flatten(), grad_XD.contiguous()
        order_P = index_P.argsort(stable=True)
        count_U = index_P.new_zeros(ctx.num_rows).scatter_add_(0, index_P, torch.ones_like(index_P))
        start_U = count_U.cumsum(0) - count_U
        reader_P, weight_P = order_P // index_XN.shape[1], weight_XN.flatten()[order_P]

        def sums(first: int, last: int, start_U: Tensor) -> Tensor:
            reader, weight = reader_P[first:last], weight_P[first:last]
            return F.embedding_bag(
                reader, grad_XD, start_U - first, mode="sum", per_sample_weights=weight
            )

        grad_UD = grad_XD.new_empty(ctx.shape)
        read_UD = grad_UD[: ctx.num_rows]
        if grad_XD.device.type != "cpu" or torch.compiler.is_compiling():
            read_UD.copy_(sums(0, len(index_P), start_U))
            return grad_XD, grad_UD, None, None, None
        bounds = [*start_U[::_CHUNK_ROWS].tolist(), len(index_P)]
        chunks = zip(read_UD.split(_CHUNK_ROWS), start_U.split(_CHUNK_ROWS), strict=True)
        for n, (chunk_UD, start_chunk_U) in enumerate(chunks):
            chunk_UD.copy_(sums(bounds[n], bounds[n + 1], start_chunk_U))
        return grad_XD, grad_UD, None, None, None
