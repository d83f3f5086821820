"""The bank: rows that memory layers read. It knows no kind of memory.

R rows of the bank, X their shape, U rows that a batch reads, B batch, G groups, N rows per group.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from moc.ops.shards import is_sharded, own_rows, owned_rows, whole


class BankRows(NamedTuple):
    """A bank in one forward pass."""

    rows_RX: Tensor
    slot_UX: Tensor | None = None  # takes the gradient in the bank's place, see ``Bank.slot``


class Bank(nn.Module):
    """R rows of one shape: fetched, updated, counted, zeroed, moved between ranks one by one.

    Args:
        one_row: a control: a single row stands for every one that is picked.
    """

    def __init__(self, num_rows: int, row_shape: Sequence[int], *, one_row: bool = False) -> None:
        super().__init__()
        self.num_rows = num_rows
        self.one_row = one_row and num_rows > 1
        self.rows = nn.Parameter(torch.empty(1 if one_row else num_rows, *row_shape))

    def view(self, slot_UX: Tensor | None = None) -> BankRows:
        """What a memory layer reads; with a slot, nothing of it needs a gradient."""
        # detached, or a sharded block, which hooks its inputs, would give the bank a gradient
        rows_RX = self.rows if slot_UX is None else self.rows.detach()
        if self.one_row:
            rows_RX = whole(rows_RX).expand(self.num_rows, *rows_RX.shape[1:])
        return BankRows(rows_RX, slot_UX)

    def slot(self, most: int) -> Tensor:
        """Where a forward pass leaves the gradients of at most ``most`` rows: a leaf of zeros, of
        no size in memory."""
        zero = torch.zeros((), dtype=self.rows.dtype, device=self.rows.device)
        return zero.expand(most, *self.rows.shape[1:]).requires_grad_()

    def zero(self, rows: Sequence[int] | None) -> Callable[[], None]:
        """A change for ``changed``: zero these rows; None: all.

        Raises:
            ValueError: for a row that there is not.
        """
        for row in rows or []:
            if not 0 <= row < len(self.rows):
                raise ValueError(f"no row {row}; the bank has 0 to {len(self.rows) - 1}")

        def change() -> None:
            own_RX, owned = own_rows(self.rows), owned_rows(self.rows)
            if rows is None:
                own_RX.zero_()
            else:
                own_RX[[row - owned.start for row in rows if row in owned]] = 0

        return change

    def take(self, other_RX: Tensor) -> Callable[[], None]:
        """A change for ``changed``: the rows of another state of this bank, all of them given."""
        assert other_RX.shape == self.rows.shape

        def change() -> None:
            owned = owned_rows(self.rows)
            own_rows(self.rows).copy_(other_RX[owned.start : owned.stop])

        return change

    @contextmanager
    def changed(self, change: Callable[[], None]) -> Iterator[None]:
        """The bank after ``change`` for the time of the context, then every bit as it was. Of a
        sharded bank every rank changes the rows that it owns: all enter and leave together."""
        own_RX = own_rows(self.rows)
        kept_RX = own_RX.detach().clone()
        try:
            with torch.no_grad():
                change()
            yield
        finally:
            with torch.no_grad():
                own_RX.copy_(kept_RX)


def distinct_rows(rows_RX: Tensor, index_BGN: Tensor, num_always: int) -> tuple[Tensor, Tensor]:
    """The rows that ``index_BGN`` reads, each once, ascending (U,); and the index renumbered.

    On a CPU, and of a sharded bank, they are exactly those: what travels should be read. Elsewhere,
    and in compiled code, U is ``most_distinct``, which depends on no data, so that nothing waits
    for the device or compiles twice: further rows, which nobody reads, fill up the rest.
    """
    num_rows, device = len(rows_RX), index_BGN.device
    most = most_distinct(num_rows, index_BGN.shape, num_always)
    used_R = torch.zeros(num_rows, dtype=torch.int8, device=device)
    used_R[index_BGN.flatten()] = 1
    plain_cpu = device.type == "cpu" and not torch.compiler.is_compiling()
    if plain_cpu or is_sharded(rows_RX):
        row_U = used_R.nonzero()[:, 0]
    elif most == num_rows:
        return torch.arange(num_rows, device=device), index_BGN
    else:
        row_U = used_R.argsort(descending=True, stable=True)[:most]
    place_R = torch.zeros(num_rows, dtype=torch.long, device=device)
    place_R[row_U] = torch.arange(row_U.numel(), device=device)
    return row_U, place_R[index_BGN]


def most_distinct(num_rows: int, shape_BGN: tuple[int, ...], num_always: int) -> int:
    """How many distinct rows groups can read at most: those always read, and each its own."""
    batch, num_groups, num_read = shape_BGN
    return min(num_rows, num_always + batch * num_groups * (num_read - num_always))


def count_use(index_BGN: Tensor, num_rows: int, num_always: int) -> Tensor:
    """How often each row was picked, (R,) int64; those always read are never picked."""
    picked_P = index_BGN[..., num_always:].flatten()
    counts_R = torch.zeros(num_rows, dtype=torch.int64, device=picked_P.device)
    # not bincount, which waits for the GPU to learn the size of its result
    return counts_R.scatter_add_(0, picked_P, torch.ones_like(picked_P))
