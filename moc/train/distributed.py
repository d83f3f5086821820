"""The few collectives that training needs; each does nothing in a single process."""

from __future__ import annotations

import os

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


def is_main_process() -> bool:
    """Whether this is rank 0, also before any process group exists (launchers set these)."""
    if is_distributed():
        return rank() == 0
    names = ("RANK", "SLURM_PROCID", "LOCAL_RANK", "NODE_RANK")
    return all(os.environ.get(name, "0") == "0" for name in names)


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
