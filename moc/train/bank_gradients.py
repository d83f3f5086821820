"""Gradients of the banks, for the chapters that a step has read and no others. Needs torch alone.

Autograd would make a gradient as large as the bank for every layer that reads it. Here the layers
leave theirs in slots (``Transformer.gradient_slots``); this sums them over layers, micro-batches
and ranks. Of a sharded bank (a DTensor) every rank ends with the sum for the chapters that it owns.

C chapters, U chapters read, T tokens per chapter, M memory width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from moc.model.memory.router import Routing
from moc.model.transformer import Transformer
from moc.ops.shards import is_sharded, rows_to_owners
from moc.train.distributed import all_sum, is_distributed, world_size

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


class RowGradient(NamedTuple):
    """A bank's gradient, or its shard's: zero but in these rows."""

    chapter_U: Tensor  # ascending, each once; of a shard, counted from its first
    grad_UTM: Tensor

    def dense(self, num_chapters: int) -> Tensor:
        """All of it, (C, T, M): ``num_chapters`` of the bank or shard."""
        if len(self.chapter_U) == num_chapters:
            return self.grad_UTM
        grad_CTM = self.grad_UTM.new_zeros(num_chapters, *self.grad_UTM.shape[1:])
        return grad_CTM.index_copy_(0, self.chapter_U, self.grad_UTM)


class BankGradients:
    """Sums one step's gradients of the banks of ``model``."""

    def __init__(self, model: Transformer) -> None:
        self.model = model
        self.sums: dict[int, RowGradient] = {}  # by bank

    def add(self, slots: Sequence[Tensor], routing: Sequence[Routing]) -> None:
        """Take in what one backward pass left in ``slots``."""
        found: dict[int, list[RowGradient]] = {bank: [rows] for bank, rows in self.sums.items()}
        banks = self.model.bank_of_layer.values()
        for bank, slot, layer in zip(banks, slots, routing, strict=True):
            assert slot.grad is not None
            num_chapters = len(self.model.bank_tokens()[bank])
            found.setdefault(bank, []).append(_rows_read(slot.grad, layer, num_chapters))
        self.sums = {bank: merge(parts) for bank, parts in found.items()}

    def finish(self) -> dict[int, RowGradient]:
        """The mean over ranks of what was added, by bank; a collective call.

        On every rank in every row, but of a sharded bank in the rank's own.
        """
        if is_distributed():
            for bank, rows in sorted(self.sums.items()):
                tokens_CTM = self.model.bank_tokens()[bank]
                if is_sharded(tokens_CTM):
                    self.sums[bank] = _mean_at_owner(rows, tokens_CTM)
                else:
                    self.sums[bank] = _mean_over_ranks(rows, len(tokens_CTM))
        return self.sums


def merge(parts: Sequence[RowGradient]) -> RowGradient:
    """Their sum, over the chapters of any of them; their memory may be used for it."""
    first = parts[0]
    if all(torch.equal(part.chapter_U, first.chapter_U) for part in parts[1:]):
        for part in parts[1:]:
            first.grad_UTM.add_(part.grad_UTM)
        return first
    chapter_P = torch.cat([part.chapter_U for part in parts])
    chapter_U, row_P = chapter_P.unique(return_inverse=True)
    grad_UTM = first.grad_UTM.new_zeros(len(chapter_U), *first.grad_UTM.shape[1:])
    for part, rows in zip(parts, row_P.split([len(p.chapter_U) for p in parts]), strict=True):
        grad_UTM.index_add_(0, rows, part.grad_UTM)
    return RowGradient(chapter_U, grad_UTM)


def _rows_read(grad_UTM: Tensor, layer: Routing, num_chapters: int) -> RowGradient:
    """A slot's gradient in the chapters that a group has read: there may be others beside them."""
    assert layer.chapter_U is not None
    read_C = torch.zeros(num_chapters, dtype=torch.bool, device=grad_UTM.device)
    read_C[layer.index_BGN.flatten()] = True
    read_U = read_C[layer.chapter_U]
    if bool(read_U.all()):
        return RowGradient(layer.chapter_U, grad_UTM[: len(layer.chapter_U)])
    return RowGradient(layer.chapter_U[read_U], grad_UTM[: len(layer.chapter_U)][read_U])


def _mean_at_owner(rows: RowGradient, bank_CTM: DTensor) -> RowGradient:
    """Of the chapters that this rank owns, those that any rank has read."""
    parts = rows_to_owners(bank_CTM, rows.chapter_U, rows.grad_UTM)
    mean = merge([RowGradient(row_U, grad_UTM) for row_U, grad_UTM in parts])
    mean.grad_UTM.div_(world_size())
    return mean


def _mean_over_ranks(rows: RowGradient, num_chapters: int) -> RowGradient:
    """On every rank, over the chapters that any of them has read."""
    read_C = torch.zeros(num_chapters, dtype=torch.int32, device=rows.chapter_U.device)
    read_C[rows.chapter_U] = 1
    chapter_U = all_sum(read_C).nonzero()[:, 0]
    row_C = torch.zeros(num_chapters, dtype=torch.long, device=chapter_U.device)
    row_C[chapter_U] = torch.arange(len(chapter_U), device=chapter_U.device)
    grad_UTM = rows.grad_UTM.new_zeros(len(chapter_U), *rows.grad_UTM.shape[1:])
    grad_UTM.index_copy_(0, row_C[rows.chapter_U], rows.grad_UTM)
    return RowGradient(chapter_U, all_sum(grad_UTM).div_(world_size()))
