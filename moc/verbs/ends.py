"""How a command ends: an exit code, and one line for what the user can mend."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable

from moc.bench.heap import keep_freed_memory
from moc.config.secrets import hide_in_output, public
from moc.errors import EXPLAINED, ConfigError, StudyInterrupted, Terminated, machine_fault


def as_command(act: Callable[[], int], *, again: str = "") -> int:
    """What ``act`` returns, or the exit code of what it raises, which one line explains.

    0: done. 1: it failed; the line says what is safe (a traceback: a bug of ours). 2: the command
    or its study cannot be used. 130 after Ctrl-C, 143 after SIGTERM: stopped, run it again to go
    on. 141: nobody reads what is printed. torchrun turns whatever a rank returns into 1.

    Args:
        again: for the end of the line, where the command goes on from what it has saved.
    """
    keep_freed_memory()
    hide_in_output()
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        code = act()
        sys.stdout.flush()
        return code
    except StudyInterrupted as error:
        return fail(f"{error}; the same command goes on from there", 128 + error.number)
    except KeyboardInterrupt as error:
        number = signal.SIGTERM if isinstance(error, Terminated) else signal.SIGINT
        return fail(f"stopped{again}", 128 + number)
    except BrokenPipeError:  # nor does anybody read what Python would write at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except Exception as error:
        return _explain(error)


def fail(message: str, code: int) -> int:
    print(f"moc: {public(message)}", file=sys.stderr)
    return code


def _explain(error: Exception) -> int:
    """One line for what the user can mend; the traceback for what only we can."""
    if isinstance(error, ConfigError):
        return fail(str(error), 2)
    if isinstance(error, EXPLAINED):
        return fail(str(error), 1)
    if fault := machine_fault(error):
        return fail(f"{fault.what}; what was saved is whole; {fault.remedy}, then try again", 1)
    raise error
