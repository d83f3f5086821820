"""One run as a task: what a process needs to know to do it, here or on another machine that sees
the same files. It needs neither torch nor the study's data."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from moc.config.yaml_text import read_yaml
from moc.store.lock import TASK_VARIABLE

_LOOK_SEC = 0.5


@dataclass(frozen=True)
class Task:
    study_file: Path  # in its folder
    arm: str
    seed: int
    log: Path  # what it prints is added there
    key: str  # of the run, whichever try this is: see ``moc.store.lock``
    cpus: int  # threads
    folder: Path = field(default_factory=Path.cwd)  # that paths of data are relative to

    @property
    def arguments(self) -> list[str]:
        return [str(self.study_file), self.arm, str(self.seed)]

    @property
    def environment(self) -> dict[str, str]:
        """What the task needs beyond ``launch.environment``."""
        return {"OMP_NUM_THREADS": str(self.cpus), TASK_VARIABLE: self.key}


class TiedProcess:
    """The task in a process that saves and ends when whoever started it is gone: nothing is left
    behind where a scheduler or a node's daemon is killed."""

    def __init__(self, task: Task, more: Mapping[str, str] = MappingProxyType({})) -> None:
        """
        Args:
            more: variables, beside those of this process, of the study and of the task.
        """
        environment = {**os.environ, **more}
        environment |= _environment_of(task.study_file)
        task.log.parent.mkdir(parents=True, exist_ok=True)
        with task.log.open("ab") as log:
            self._process = subprocess.Popen(
                # -P: nothing is imported from where the user happens to be
                [sys.executable, "-P", "-m", "moc.launch.worker", "--tied", *task.arguments],
                cwd=task.folder,
                env=environment | task.environment,
                stdin=subprocess.PIPE,  # nothing is written to it: it closes with this process
                stdout=log,
                stderr=log,
                # SLURM says with it that time is nearly up, to all processes of a task
                preexec_fn=lambda: signal.signal(signal.SIGUSR2, signal.SIG_IGN),
            )
        self._waiting = threading.Thread(target=self._process.wait, daemon=True)
        self._waiting.start()

    def wait(self) -> int:
        """Its exit code; a signal handler may call this, too, while it waits."""
        while self._waiting.is_alive():
            self._waiting.join(_LOOK_SEC)  # Ray interrupts between two looks
        return int(self._process.returncode)

    def stop(self) -> None:
        """Ask it to save and end."""
        self._process.send_signal(signal.SIGTERM)


def _environment_of(study_file: Path) -> dict[str, str]:
    """Its ``launch.environment``. The study was checked when it was saved; to check it again here
    would take torch."""
    study = read_yaml(study_file.read_text(encoding="utf-8"))
    return {name: str(value) for name, value in study.launch.environment.items()}
