"""Memory of a process on a CPU."""

from __future__ import annotations

import ctypes
import resource
import sys
from pathlib import Path

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of mallopt(3)
_MOST = 32 * 2**20  # bytes, the largest threshold that glibc takes


def keep_freed_memory() -> None:
    """Keep freed tensors of up to 32 MiB for the next ones, where the C library is glibc.

    By default it gives every freed megabyte back to the kernel, which clears it page by page when
    the next tensor asks for it: on a virtual machine that took a fifth of a training step.
    """
    _set(_MOST, 2**31 - 1)


def give_back_freed_memory() -> None:
    """The opposite, for measuring: what is resident is what is needed. Slower."""
    _set(64 * 1024, 64 * 1024)


def _set(mmap_threshold: int, trim_threshold: int) -> None:
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # musl has none
        mallopt(_M_MMAP_THRESHOLD, mmap_threshold)
        mallopt(_M_TRIM_THRESHOLD, trim_threshold)


def peak_resident_bytes() -> int:
    """The most memory that this process has held so far."""
    status = Path("/proc/self/status")
    if status.is_file():  # getrusage also counts what the parent held before the start
        lines = status.read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
