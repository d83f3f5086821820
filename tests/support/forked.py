"""A command in a process, and a session, of its own, that has this one's imports behind it: they
take ten seconds and more."""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path


class Forked:
    """``task()``, which returns an exit code, in a child; what it prints goes to ``log``. A child
    of this one starts its own as any process does."""

    def __init__(self, task: Callable[[], int], log: Path) -> None:
        self._code: int | None = None
        self.pid = os.fork()
        if not self.pid:
            status = 70
            try:
                os.setsid()
                _redirect(log)
                status = task()
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                os._exit(status)

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def poll(self) -> int | None:
        """The exit code, -N for signal N; None while it runs."""
        if self._code is None:
            found, status = os.waitpid(self.pid, os.WNOHANG)
            self._code = os.waitstatus_to_exitcode(status) if found else None
        return self._code

    def wait(self, timeout_sec: float = 60) -> int:
        deadline = time.monotonic() + timeout_sec
        while (code := self.poll()) is None:
            assert time.monotonic() < deadline, f"process {self.pid} goes on and on"
            time.sleep(0.01)
        return code


def _redirect(log: Path) -> None:
    """Standard input, output and errors, also what pytest has put in their places."""
    nothing, file = os.open(os.devnull, os.O_RDONLY), log.open("w", buffering=1)
    os.dup2(nothing, 0)
    for number in (1, 2):
        os.dup2(file.fileno(), number)
    sys.stdin, sys.stdout, sys.stderr = os.fdopen(0), file, file
