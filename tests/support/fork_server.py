"""Runs functions in child processes that have their imports behind them.

Importing the study takes seconds; the tests that kill processes, or need two of them, would do it
dozens of times. This script (started by ``tests.conftest``) imports once, then forks for each task
that arrives on standard input: {"ranks": [{"env", "log", "function", "arguments"}]}, where function
is the name of one in ``tests.support.child_tasks``. It answers with the ranks' exit codes, as
Popen's.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import time
import traceback
from typing import Any

from moc.verbs.imports import importing

with importing():
    import torch

    from moc.tracking.server import prepare_mlflow
    from tests.support import child_tasks

TIMEOUT_SEC = 240
# what they import when it is first needed, and every child would anew
OF_REPORTS_AND_MLFLOW = (
    "matplotlib.backends.backend_agg",
    "matplotlib.backends.backend_svg",
    "mlflow.store.tracking.sqlalchemy_store",
)
GRACE_SEC = 10  # for the other ranks, once one has failed


def main() -> None:
    torch.set_num_threads(1)
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    for line in sys.stdin:
        tasks = json.loads(line)["ranks"]
        if any("tracked" in task["function"] for task in tasks):
            with importing():  # which takes as long again; most tasks do without
                prepare_mlflow()
                for name in OF_REPORTS_AND_MLFLOW:
                    importlib.import_module(name)
        children = [_fork(task) for task in tasks]
        answers.write(json.dumps(_wait(children)) + "\n")


def _fork(task: dict[str, Any]) -> int:
    child = os.fork()
    if child:
        return child
    status = 70
    try:
        log = os.open(task["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.environ.update(task["env"])
        status = getattr(child_tasks, task["function"])(**task["arguments"]) or 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _wait(children: list[int]) -> list[int | None]:
    """Exit codes, -N for signal N; None for those that did not end."""
    codes: dict[int, int | None] = {}
    deadline = time.monotonic() + TIMEOUT_SEC
    while len(codes) < len(children):
        for child in set(children) - set(codes):
            found, status = os.waitpid(child, os.WNOHANG)
            if found:
                codes[child] = os.waitstatus_to_exitcode(status)
                if codes[child]:
                    deadline = min(deadline, time.monotonic() + GRACE_SEC)
            elif time.monotonic() > deadline:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                codes[child] = None
        time.sleep(0.01)
    return [codes[child] for child in children]


if __name__ == "__main__":
    main()
