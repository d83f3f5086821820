"""The few collectives that training needs; each does nothing in a single process."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor
from torch import distributed as dist


def is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def world_size() -> int:
    return dist.get_world_size() if is_distributed() else 1


def rank() -> int:
    return dist.get_rank() if is_distributed() else 0


def launched_ranks() -> int:
    """How many processes a launcher has started for this training, also before any process group
    exists; 1 if none did."""
    if is_distributed():
        return world_size()
    return max(int(os.environ.get(name, "1")) for name in ("WORLD_SIZE", "SLURM_NTASKS"))


def launched_rank(devices_per_node: int) -> int:
    """This process's rank, also before any process group exists."""
    if is_distributed():
        return rank()
    for name in ("RANK", "SLURM_PROCID"):
        if name in os.environ:
            return int(os.environ[name])
    local, node = (int(os.environ.get(name, "0")) for name in ("LOCAL_RANK", "NODE_RANK"))
    return node * devices_per_node + local


def is_main_process() -> bool:
    """Whether this is rank 0, also before any process group exists (launchers set these)."""
    if is_distributed():
        return rank() == 0
    names = ("RANK", "SLURM_PROCID", "LOCAL_RANK", "NODE_RANK")
    return all(os.environ.get(name, "0") == "0" for name in names)


_working_alone = threading.Event()


@contextmanager
def alone() -> Iterator[None]:
    """What this rank does here the others wait for, however long it takes (``moc.train.ranks``)."""
    _working_alone.set()
    try:
        yield
    finally:
        _working_alone.clear()


def is_alone() -> bool:
    return _working_alone.is_set()


def all_sum(tensor: Tensor) -> Tensor:
    """``tensor`` summed over ranks (a new tensor; the argument is left alone)."""
    if not is_distributed():
        return tensor
    total = tensor.detach().clone()
    dist.all_reduce(total)
    return total


def barrier() -> None:
    if is_distributed():
        dist.barrier()
