"""What a launcher is: it starts a run somewhere as a task, and can say how that ended."""

from __future__ import annotations

from typing import Protocol

from moc.run.arm_seed import ArmSeed


class Job(Protocol):
    """One try at one run."""

    where: str  # for people: "process 123"

    def exit_code(self) -> int | None:
        """The command's (``moc.verbs.ends``), or -N if signal N ended it; None while it runs."""

    def stop(self) -> None:
        """Ask it to save and end. Nothing happens to one that has ended."""

    def kill(self) -> None:
        """End it where it is."""


class Launcher(Protocol):
    at_once: int  # how many runs
    cpus: int  # of each

    def submit(self, run: ArmSeed) -> Job:
        """Start ``run`` from the study's file; its output is added to ``run.dir.log``."""
