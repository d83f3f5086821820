"""Rows of a bank that is spread over ranks, sent to those who read them and back to their owners.

Rank r of W owns ceil(R / W) rows from r * ceil(R / W) on, as far as there are any: DTensor's
``Shard(0)``. Fetching and sending are collective: every rank calls, also one that needs nothing.

R rows, U rows asked for here, P rows that other ranks ask for or send (by rank), X the shape of a
row.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, TypeGuard

import torch
from torch import Tensor
from torch import distributed as dist
from torch.distributed.device_mesh import DeviceMesh

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def is_sharded(tensor_RX: Tensor) -> TypeGuard[DTensor]:
    """Whether it is a DTensor. Their module costs 40 MB: whoever made one has imported it."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor_RX, module.DTensor)


def shard_rows(tensor_RX: Tensor, mesh: DeviceMesh) -> DTensor:
    """A tensor that every rank holds, spread over ``mesh``; only its own rows go to the device."""
    per_rank = _rows_per_rank(len(tensor_RX), mesh)
    own_RX = tensor_RX[per_rank * mesh.get_local_rank() :][:per_rank]
    # a copy, so that the whole can be freed
    return like_shard(own_RX.clone().to(mesh.device_type), tensor_RX, mesh)


def like_shard(own_RX: Tensor, whole_RX: Tensor, mesh: DeviceMesh) -> DTensor:
    """The tensor of the shape of ``whole_RX`` whose rows on this rank are ``own_RX``."""
    from torch.distributed.tensor import DTensor, Shard

    shape, stride = whole_RX.shape, whole_RX.stride()
    return DTensor.from_local(own_RX, mesh, [Shard(0)], run_check=False, shape=shape, stride=stride)


def own_rows(tensor_RX: Tensor) -> Tensor:
    """This rank's rows, in the same memory; all, if the tensor is not sharded."""
    return tensor_RX.to_local() if is_sharded(tensor_RX) else tensor_RX


def whole(tensor_RX: Tensor) -> Tensor:
    """The whole tensor of a sharded one (a collective); any other tensor as it is."""
    return tensor_RX.full_tensor() if is_sharded(tensor_RX) else tensor_RX


def owned_rows(tensor_RX: Tensor) -> range:
    """Which rows those are."""
    if not is_sharded(tensor_RX):
        return range(len(tensor_RX))
    mesh = tensor_RX.device_mesh
    per_rank = _rows_per_rank(len(tensor_RX), mesh)
    first = min(mesh.get_local_rank() * per_rank, len(tensor_RX))
    return range(first, min(first + per_rank, len(tensor_RX)))


def fetch_rows(bank_RX: DTensor, row_U: Tensor) -> Tensor:
    """The rows ``row_U`` (ascending, each once) from their owners: (U, X), no gradient.

    Only these travel.
    """
    if torch.compiler.is_compiling():
        return _uncompiled()(bank_RX, row_U)
    return _fetch_rows(bank_RX, row_U)


@functools.cache
def _uncompiled() -> Callable[[DTensor, Tensor], Tensor]:
    """Sizes depend on data, and no collective may be reordered. Made only when somebody compiles:
    it imports the compiler, which takes seconds."""
    return torch.compiler.disable(_fetch_rows)


def _fetch_rows(bank_RX: DTensor, row_U: Tensor) -> Tensor:
    with torch.no_grad():
        trade = _Trade.of(bank_RX, row_U)
        asked_PX = own_rows(bank_RX).index_select(0, trade.ask(row_U))
        return _exchange(trade.group, asked_PX, trade.received_W, trade.sent_W)


def rows_to_owners(bank_RX: DTensor, row_U: Tensor, rows_UX: Tensor) -> list[tuple[Tensor, Tensor]]:
    """What each rank has sent here of its ``rows_UX``: rows of this shard, ascending, and values.

    ``row_U`` is ascending, each once.
    """
    trade = _Trade.of(bank_RX, row_U)
    row_P = trade.ask(row_U)
    rows_PX = _exchange(trade.group, rows_UX, trade.sent_W, trade.received_W)
    split = trade.received_W
    return list(zip(row_P.split(split), rows_PX.split(split), strict=True))


def _rows_per_rank(num_rows: int, mesh: DeviceMesh) -> int:
    return -(-num_rows // mesh.size())


class _Trade(NamedTuple):
    """How many rows this rank asks of each, and each of this one."""

    group: dist.ProcessGroup
    first: int  # row of this rank
    sent_W: list[int]
    received_W: list[int]

    @classmethod
    def of(cls, bank_RX: DTensor, row_U: Tensor) -> _Trade:
        group = bank_RX.device_mesh.get_group()
        owner_U = row_U // _rows_per_rank(len(bank_RX), bank_RX.device_mesh)
        sent_W = torch.bincount(owner_U, minlength=dist.get_world_size(group))
        received_W = torch.empty_like(sent_W)
        dist.all_to_all_single(received_W, sent_W, group=group)
        first = owned_rows(bank_RX).start
        return cls(group, first, sent_W.tolist(), received_W.tolist())

    def ask(self, row_U: Tensor) -> Tensor:
        """The rows of this shard that each rank has named, rank by rank: (P,)."""
        return _exchange(self.group, row_U, self.sent_W, self.received_W) - self.first


def _exchange(
    group: dist.ProcessGroup, x_UX: Tensor, sent_W: list[int], received_W: list[int]
) -> Tensor:
    """Rows ``x_UX``, the first ``sent_W[0]`` to rank 0, the next to rank 1; what came, likewise."""
    y_PX = x_UX.new_empty(sum(received_W), *x_UX.shape[1:])
    dist.all_to_all_single(y_PX, x_UX.contiguous(), received_W, sent_W, group=group)
    return y_PX
