"""What can go wrong by no fault of the code. The command line prints each in one line."""

import difflib
import errno
import re
import signal
from collections.abc import Iterator, Sequence
from typing import NamedTuple


class ConfigError(ValueError):
    """Something the user wrote cannot be used; the message is one line with the remedy."""


class CheckpointError(ValueError):
    """Files on disk cannot be used; the message says which and what to do."""


class DamagedFile(CheckpointError):
    """A small file that other files can be read without."""

    def __init__(self, path: object, why: str, remedy: str = "it is made again") -> None:
        super().__init__(f"{path} is damaged ({why}); {remedy}")
        self.why = why


class FormatError(CheckpointError):
    """Files were written in another format than this version's."""


class RunHeld(RuntimeError):
    """Another process works on a run; the message says which."""


class RunFailed(RuntimeError):
    """A run that was started elsewhere cannot be brought to its end; the message says why."""


class TrainingDiverged(RuntimeError):
    """Too many updates in a row were not finite."""


class StudyIncomplete(RuntimeError):
    """Runs that something needs have not come to their end; the message says which."""


class RankLost(RuntimeError):
    """Another rank of this training ended or does not come; the message says which."""


class MachineFault(RuntimeError):
    """The machine gave out (a full disk, no memory, ...); the message says what is safe."""


class RunGone(RuntimeError):
    """The files of a run were removed, or another process took it over, while it was trained."""


EXPLAINED = (
    CheckpointError,
    MachineFault,
    RankLost,
    RunFailed,
    RunGone,
    RunHeld,
    StudyIncomplete,
    TrainingDiverged,
)


class Terminated(KeyboardInterrupt):
    """SIGTERM, where Ctrl-C would raise KeyboardInterrupt."""


class RunPaused(Exception):
    """Training has come to where it was told to stop; the state is on disk."""


class StudyInterrupted(Exception):
    """The user or the scheduler asked to stop; everything up to here is saved.

    Args:
        number: the signal that asked.
    """

    def __init__(self, message: str, number: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.number = number


def nearest(word: str, choices: Sequence[str]) -> str:
    """A hint for a mistyped word: the nearest choice, or all of them when none is near."""
    close = difflib.get_close_matches(word, choices, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"choose from {', '.join(choices)}" if choices else "there is nothing to choose from"


class Fault(NamedTuple):
    """What the machine did, and what to do about it."""

    what: str
    remedy: str
    memory: bool = False


_FAULTS = {
    errno.ENOSPC: ("the disk is full", "free some space"),
    errno.EDQUOT: ("the disk quota is used up", "free some space"),
    errno.EACCES: ("permission denied", "make it readable and writable"),
    errno.EPERM: ("permission denied", "make it readable and writable"),
    errno.EROFS: ("the file system is read-only", "make it writable"),
    errno.EIO: ("the disk failed to read or write", "see what the system's log says of it"),
    errno.EMFILE: ("too many open files", "raise the limit (ulimit -n)"),
    errno.ENFILE: ("too many open files on this machine", "raise the limit (fs.file-max)"),
}
_NO_MEMORY = re.compile(r"can't allocate memory|out of memory|Cannot allocate memory", re.I)
_WORKER = re.compile(r"DataLoader worker \(pid[^)]*\) (is killed by signal: \w+|exited unexp\w+)")


def machine_fault(error: BaseException) -> Fault | None:
    """What of the machine is behind ``error``; None for anything else."""
    if isinstance(error, EXPLAINED):
        return None
    for each in _with_reasons(error):
        if isinstance(each, MemoryError) or type(each).__name__ == "OutOfMemoryError":
            return _out_of_memory(each)
        if isinstance(each, OSError):
            # a loader's worker passes on the text alone
            told = re.search(r"\[Errno (\d+)\]", str(each))
            number = each.errno or (int(told[1]) if told else 0)
            if number == errno.ENOMEM:
                return _out_of_memory(each)
            if number in _FAULTS:
                what, remedy = _FAULTS[number]
                where = f" ({each.filename})" if each.filename else ""
                return Fault(f"{what}{where}", remedy)
        elif isinstance(each, RuntimeError):
            if _NO_MEMORY.search(str(each)):
                return _out_of_memory(each)
            if worker := _WORKER.search(str(each)):
                return Fault(
                    f"a process that loads data {worker[1]} (by the system, if memory was short)",
                    "free memory or lower trainer.num_workers",
                )
    return None


def _out_of_memory(error: BaseException) -> Fault:
    asked = re.search(r"tried to allocate ([\d.]+ ?\w*)", str(error), re.I)
    more = f" (it asked for {asked[1].strip()} more)" if asked else ""
    return Fault(f"out of memory{more}", "free memory", memory=True)


def _with_reasons(error: BaseException | None) -> Iterator[BaseException]:
    """``error`` and those behind it: torch.save fails once more while it handles a full disk."""
    while isinstance(error, (OSError, RuntimeError, MemoryError)):
        yield error
        error = error.__cause__ or error.__context__
