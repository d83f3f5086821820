"""Work that training never waits for."""

from __future__ import annotations

import threading
from collections.abc import Callable

from moc.tracking.content import one_line


class Background:
    """Does ``work(closing)`` on a daemon thread whenever it is woken, and goes on when it fails.

    Args:
        work: told whether this is the last time.
        report: called with one line for a failure, unless the time before failed too.
    """

    def __init__(self, name: str, work: Callable[[bool], None], report: Callable[[str], None]):
        self._work, self._report = work, report
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._loop, name=name, daemon=True)
        self._error: str | None = None

    def start(self) -> None:
        self._thread.start()
        self.wake()

    def wake(self) -> None:
        self._wake.set()

    def close(self, timeout_sec: float) -> str | None:
        """Work once more and stop. In one line why that did not work, else None."""
        self._closing.set()
        self._wake.set()
        self._thread.join(timeout_sec)
        return f"busy after {timeout_sec:.0f} s" if self._thread.is_alive() else self._error

    def _loop(self) -> None:
        while True:
            self._wake.wait()
            self._wake.clear()
            closing = self._closing.is_set()
            try:
                self._work(closing)
                self._error = None
            except Exception as error:  # the thread must outlive whatever a server can raise
                reason = one_line(error)
                if self._error is None:
                    self._report(reason)
                self._error = reason
            if closing:
                return
