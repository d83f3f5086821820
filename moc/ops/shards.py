"""Rows of a bank that is spread over ranks, sent to those who read them and back to their owners.

Rank r of W owns ceil(C / W) chapters from r * ceil(C / W) on, as far as there are any: DTensor's
``Shard(0)``. Fetching and sending are collective: every rank calls, also one that needs nothing.

C chapters, U chapters asked for here, P rows that other ranks ask for or send (by rank), T tokens
per chapter, M memory width, X any further dimensions.
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


def is_sharded(tensor_CX: Tensor) -> TypeGuard[DTensor]:
    """Whether it is a DTensor. Their module costs 40 MB: whoever made one has imported it."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor_CX, module.DTensor)


def shard_rows(tensor_CX: Tensor, mesh: DeviceMesh) -> DTensor:
    """A tensor that every rank holds, spread over ``mesh``; only its own rows go to the device."""
    per_rank = _rows_per_rank(len(tensor_CX), mesh)
    own_CX = tensor_CX[per_rank * mesh.get_local_rank() :][:per_rank]
    # a copy, so that the whole can be freed
    return like_shard(own_CX.clone().to(mesh.device_type), tensor_CX, mesh)


def like_shard(own_CX: Tensor, whole_CX: Tensor, mesh: DeviceMesh) -> DTensor:
    """The tensor of the shape of ``whole_CX`` whose rows on this rank are ``own_CX``."""
    from torch.distributed.tensor import DTensor, Shard

    shape, stride = whole_CX.shape, whole_CX.stride()
    return DTensor.from_local(own_CX, mesh, [Shard(0)], run_check=False, shape=shape, stride=stride)


def own_rows(tensor_CX: Tensor) -> Tensor:
    """This rank's rows, in the same memory; all, if the tensor is not sharded."""
    return tensor_CX.to_local() if is_sharded(tensor_CX) else tensor_CX


def owned_chapters(tensor_CX: Tensor) -> range:
    """Which rows those are."""
    if not is_sharded(tensor_CX):
        return range(len(tensor_CX))
    mesh = tensor_CX.device_mesh
    per_rank = _rows_per_rank(len(tensor_CX), mesh)
    first = min(mesh.get_local_rank() * per_rank, len(tensor_CX))
    return range(first, min(first + per_rank, len(tensor_CX)))


def fetch_rows(bank_CTM: DTensor, chapter_U: Tensor) -> Tensor:
    """The chapters ``chapter_U`` (ascending, each once) from their owners: (U, T, M), no gradient.

    Only these travel.
    """
    if torch.compiler.is_compiling():
        return _uncompiled()(bank_CTM, chapter_U)
    return _fetch_rows(bank_CTM, chapter_U)


@functools.cache
def _uncompiled() -> Callable[[DTensor, Tensor], Tensor]:
    """Sizes depend on data, and no collective may be reordered. Made only when somebody compiles:
    it imports the compiler, which takes seconds."""
    return torch.compiler.disable(_fetch_rows)


def _fetch_rows(bank_CTM: DTensor, chapter_U: Tensor) -> Tensor:
    with torch.no_grad():
        trade = _Trade.of(bank_CTM, chapter_U)
        asked_PTM = own_rows(bank_CTM).index_select(0, trade.ask(chapter_U))
        return _exchange(trade.group, asked_PTM, trade.received_W, trade.sent_W)


def rows_to_owners(
    bank_CTM: DTensor, chapter_U: Tensor, rows_UTM: Tensor
) -> list[tuple[Tensor, Tensor]]:
    """What each rank has sent here of its ``rows_UTM``: rows of this shard, ascending, and values.

    ``chapter_U`` is ascending, each once.
    """
    trade = _Trade.of(bank_CTM, chapter_U)
    row_P = trade.ask(chapter_U)
    rows_PTM = _exchange(trade.group, rows_UTM, trade.sent_W, trade.received_W)
    split = trade.received_W
    return list(zip(row_P.split(split), rows_PTM.split(split), strict=True))


def _rows_per_rank(num_rows: int, mesh: DeviceMesh) -> int:
    return -(-num_rows // mesh.size())


class _Trade(NamedTuple):
    """How many chapters this rank asks of each, and each of this one."""

    group: dist.ProcessGroup
    first: int  # chapter of this rank
    sent_W: list[int]
    received_W: list[int]

    @classmethod
    def of(cls, bank_CTM: DTensor, chapter_U: Tensor) -> _Trade:
        group = bank_CTM.device_mesh.get_group()
        owner_U = chapter_U // _rows_per_rank(len(bank_CTM), bank_CTM.device_mesh)
        sent_W = torch.bincount(owner_U, minlength=dist.get_world_size(group))
        received_W = torch.empty_like(sent_W)
        dist.all_to_all_single(received_W, sent_W, group=group)
        first = owned_chapters(bank_CTM).start
        return cls(group, first, sent_W.tolist(), received_W.tolist())

    def ask(self, chapter_U: Tensor) -> Tensor:
        """The rows of this shard that each rank has named, rank by rank: (P,)."""
        return _exchange(self.group, chapter_U, self.sent_W, self.received_W) - self.first


def _exchange(
    group: dist.ProcessGroup, x_UX: Tensor, sent_W: list[int], received_W: list[int]
) -> Tensor:
    """Rows ``x_UX``, the first ``sent_W[0]`` to rank 0, the next to rank 1; what came, likewise."""
    y_PX = x_UX.new_empty(sum(received_W), *x_UX.shape[1:])
    dist.all_to_all_single(y_PX, x_UX.contiguous(), received_W, sent_W, group=group)
    return y_PX
