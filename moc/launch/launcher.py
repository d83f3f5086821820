"""What a launcher is: it starts tasks somewhere, and can say how each ended."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

from moc.launch.task import Task


class End(NamedTuple):
    """How one try at a run ended."""

    code: int  # of the command (``moc.verbs.ends``), or -N if signal N ended it
    why: str | None = None  # in words; None: the last line that it printed says it
    again: bool = True  # unless somebody meant it to end


class Job(Protocol):
    """One try at one run."""

    where: str  # for people: "process 123"

    def end(self) -> End | None:
        """None while it waits or runs."""

    def stop(self) -> None:
        """Ask it to save and end. Nothing happens to one that has ended."""

    def kill(self) -> None:
        """End it where it is."""


class Launcher(Protocol):
    at_once: int  # how many runs
    cpus: int  # of each
    is_here: bool  # on this machine
    detaches: bool  # what it started goes on without it

    def submit(self, tasks: Sequence[Task]) -> Iterable[Job]:
        """Start them, or queue them, in order; what they print is added to each one's log.

        Raises:
            ConfigError: if what is to run them refuses to.
        """
