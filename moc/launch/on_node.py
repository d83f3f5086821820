"""What a node of a cluster executes: the run in a process of its own, and what is to be done when
the cluster asks for the node. It imports little: a node has better uses for its memory."""

from __future__ import annotations

import signal
import sys
from types import FrameType
from typing import Any

from moc.launch.task import Task, TiedProcess

STOPPED = 128 + signal.SIGTERM


class SlurmTask:
    """A job, as submitit keeps it."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self._process: TiedProcess | None = None

    def __call__(self) -> int:
        self._process = TiedProcess(self.task)
        signal.signal(signal.SIGTERM, self._pass_on)
        code = self._process.wait()
        if code == STOPPED:  # no result: SLURM knows whether it was cancelled or is queued again
            sys.exit(code)
        return code

    def checkpoint(self) -> Any:
        """submitit calls it when time is nearly up, and queues what it returns."""
        import submitit

        if self._process is not None:
            self._process.stop()
            self._process.wait()
        return submitit.helpers.DelayedSubmission(SlurmTask(self.task))

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        if self._process is not None:
            self._process.stop()


def run_for_ray(task: Task, environment: dict[str, str]) -> int:
    """
    Raises:
        KeyboardInterrupt: if Ray cancels it; it has saved.
    """
    process = TiedProcess(task, environment)
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.stop()
        process.wait()
        raise
