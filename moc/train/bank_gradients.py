"""Gradients of the banks, for the rows that a step has read and no others. Needs torch alone.

Autograd would make a gradient as large as the bank for every layer that reads it. Here the layers
leave theirs in slots (``Transformer.gradient_slots``); this sums them over layers, micro-batches
and ranks. Of a sharded bank (a DTensor) every rank ends with the sum for the rows that it owns.

R rows, X their shape, U rows read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from moc.model.memory.seam import Address
from moc.model.transformer import Transformer
from moc.ops.shards import is_sharded, rows_to_owners
from moc.train.distributed import all_sum, is_distributed, world_size

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


class RowGradient(NamedTuple):
    """A bank's gradient, or its shard's: zero but in these rows."""

    row_U: Tensor  # ascending, each once; of a shard, counted from its first
    grad_UX: Tensor

    def dense(self, num_rows: int) -> Tensor:
        """All of it, (R, X): ``num_rows`` of the bank or shard."""
        if len(self.row_U) == num_rows:
            return self.grad_UX
        grad_RX = self.grad_UX.new_zeros(num_rows, *self.grad_UX.shape[1:])
        return grad_RX.index_copy_(0, self.row_U, self.grad_UX)


class BankGradients:
    """Sums one step's gradients of the banks of ``model``."""

    def __init__(self, model: Transformer) -> None:
        self.model = model
        self.sums: dict[int, RowGradient] = {}  # by bank

    def add(self, slots: Sequence[Tensor], addresses: Sequence[Address]) -> None:
        """Take in what one backward pass left in ``slots``."""
        found: dict[int, list[RowGradient]] = {bank: [rows] for bank, rows in self.sums.items()}
        banks = self.model.bank_of_layer.values()
        for bank, slot, address in zip(banks, slots, addresses, strict=True):
            assert slot.grad is not None
            num_rows = len(self.model.bank_rows()[bank])
            found.setdefault(bank, []).append(_rows_read(slot.grad, address, num_rows))
        self.sums = {bank: merge(parts) for bank, parts in found.items()}

    def finish(self) -> dict[int, RowGradient]:
        """The mean over ranks of what was added, by bank; a collective call.

        On every rank in every row, but of a sharded bank in the rank's own.
        """
        if is_distributed():
            for bank, rows in sorted(self.sums.items()):
                bank_RX = self.model.bank_rows()[bank]
                if is_sharded(bank_RX):
                    self.sums[bank] = _mean_at_owner(rows, bank_RX)
                else:
                    self.sums[bank] = _mean_over_ranks(rows, len(bank_RX))
        return self.sums


def merge(parts: Sequence[RowGradient]) -> RowGradient:
    """Their sum, over the rows of any of them; their memory may be used for it."""
    first = parts[0]
    if all(torch.equal(part.row_U, first.row_U) for part in parts[1:]):
        for part in parts[1:]:
            first.grad_UX.add_(part.grad_UX)
        return first
    every_P = torch.cat([part.row_U for part in parts])
    row_U, row_P = every_P.unique(return_inverse=True)
    grad_UX = first.grad_UX.new_zeros(len(row_U), *first.grad_UX.shape[1:])
    for part, rows in zip(parts, row_P.split([len(p.row_U) for p in parts]), strict=True):
        grad_UX.index_add_(0, rows, part.grad_UX)
    return RowGradient(row_U, grad_UX)


def _rows_read(grad_UX: Tensor, address: Address, num_rows: int) -> RowGradient:
    """A slot's gradient in the rows that a group has read: there may be others beside them."""
    assert address.row_U is not None
    if num_rows == 1:  # it stands for all
        read_UX = grad_UX[: len(address.row_U)]
        return RowGradient(torch.zeros_like(address.row_U[:1]), read_UX.sum(0, keepdim=True))
    read_R = torch.zeros(num_rows, dtype=torch.bool, device=grad_UX.device)
    read_R[address.index_BGN.flatten()] = True
    read_U = read_R[address.row_U]
    if bool(read_U.all()):
        return RowGradient(address.row_U, grad_UX[: len(address.row_U)])
    return RowGradient(address.row_U[read_U], grad_UX[: len(address.row_U)][read_U])


def _mean_at_owner(rows: RowGradient, bank_RX: DTensor) -> RowGradient:
    """Of the rows that this rank owns, those that any rank has read."""
    parts = rows_to_owners(bank_RX, rows.row_U, rows.grad_UX)
    mean = merge([RowGradient(row_U, grad_UX) for row_U, grad_UX in parts])
    mean.grad_UX.div_(world_size())
    return mean


def _mean_over_ranks(rows: RowGradient, num_rows: int) -> RowGradient:
    """On every rank, over the rows that any of them has read."""
    read_R = torch.zeros(num_rows, dtype=torch.int32, device=rows.row_U.device)
    read_R[rows.row_U] = 1
    row_U = all_sum(read_R).nonzero()[:, 0]
    place_R = torch.zeros(num_rows, dtype=torch.long, device=row_U.device)
    place_R[row_U] = torch.arange(len(row_U), device=row_U.device)
    grad_UX = rows.grad_UX.new_zeros(len(row_U), *rows.grad_UX.shape[1:])
    grad_UX.index_copy_(0, place_R[rows.row_U], rows.grad_UX)
    return RowGradient(row_U, all_sum(grad_UX).div_(world_size()))
