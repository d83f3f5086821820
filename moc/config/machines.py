"""Settings of what a study runs on: they decide no result, so no run is told apart by them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from moc.ranges import Range


@dataclass
class LaunchConfig:
    """What ``--launch`` gives to every run of a study. One run is one task."""

    # threads of a run; null: on this machine the cores, shared among the runs at once; elsewhere 1.
    # Sums over several threads round otherwise than over one: for the same weights to the bit
    # however a study is run, set it (it is also obeyed where one process does all runs)
    cpus: Annotated[int | None, Range(1, 1024)] = None
    # GPUs of a run, a share of one where several runs fit on it (not on SLURM); null: one if the
    # trainer would use one here (trainer.accelerator: cpu uses none)
    gpus: Annotated[float | None, Range(0, 1, without="low")] = None
    # memory to ask SLURM or Ray for; null: what 'moc plan' expects, and half of it again
    memory_gb: Annotated[float | None, Range(0, 10**5, without="low")] = None
    # SLURM's time limit; a run that comes near it saves, and is queued again
    minutes: Annotated[int, Range(5, 10**6)] = 240
    # how many at once on SLURM or Ray; null: as many as there is room for
    at_once: Annotated[int | None, Range(1, 10_000)] = None
    # how often a run that died is started again
    retries: Annotated[int, Range(0, 1000)] = 3
    # of SLURM; null: the user's default
    partition: str | None = None
    account: str | None = None
    # environment variables of every run
    environment: dict[str, str] = field(default_factory=dict)
