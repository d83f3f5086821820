"""What SIGINT and SIGTERM do: stop after the step, or wherever the program is."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from moc.errors import Terminated

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# One request can come twice: from a scheduler to the whole group, and from a launcher that got it
# there and passes it on. Whoever asks again on purpose takes longer.
_SAME_REQUEST_SEC = 1.0
_last = {"sec": -_SAME_REQUEST_SEC}  # of the process, as its handlers are


def on_stop_signal(act: Callable[[int], None]) -> None:
    """Call ``act`` with the number of every SIGINT or SIGTERM from now on, repeats left out."""

    def handle(number: int, frame: FrameType | None) -> None:
        before, _last["sec"] = _last["sec"], time.monotonic()
        if _last["sec"] - before >= _SAME_REQUEST_SEC:
            act(number)

    for number in STOP_SIGNALS:
        signal.signal(number, handle)


def stop_at_once(number: int) -> None:
    """
    Raises:
        KeyboardInterrupt: for SIGINT; ``Terminated``, which is one, for SIGTERM.
    """
    raise Terminated if number == signal.SIGTERM else KeyboardInterrupt


@contextmanager
def stop_signals_held_back() -> Iterator[None]:
    """What asks to stop in here is heard at the end of it."""
    heard: list[int] = []
    with handlers_kept():
        for number in STOP_SIGNALS:
            signal.signal(number, lambda number, frame: heard.append(number))
        yield
    if heard:
        signal.raise_signal(heard[0])


@contextmanager
def handlers_kept() -> Iterator[None]:
    """Afterwards, both signals do what they did before."""
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
