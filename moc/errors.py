"""What can go wrong by no fault of the code. The command line prints each in one line."""

import difflib
from collections.abc import Sequence


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


class TrainingDiverged(RuntimeError):
    """Too many updates in a row were not finite."""


class StudyInterrupted(Exception):
    """The user or the scheduler asked to stop; everything up to here is saved."""


def nearest(word: str, choices: Sequence[str]) -> str:
    """A hint for a mistyped word: the nearest choice, or all of them when none is near."""
    close = difflib.get_close_matches(word, choices, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"choose from {', '.join(choices)}" if choices else "there is nothing to choose from"
