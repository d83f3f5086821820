"""Fixtures that several rooms share."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

# As moc.verbs.imports does for a command: what the tests import stays, and is not looked at again.
gc.disable()

# Started in a shell's background, Python would ignore SIGINT, and so would every child.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).parents[1]
Run = Callable[..., list[int | None]]


@pytest.fixture(scope="session")
def in_child(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """``in_child(function, log=..., env=[...], each=[...], **arguments)``: a function of
    ``tests.support.child_tasks`` in as many new processes as ``env`` or ``each`` has entries (one
    by default), which are variables, and more arguments, of one of them. Returns their exit codes;
    ``log`` receives the first one's output, ``log.1`` the second one's and so on.
    """
    server: list[subprocess.Popen[str]] = []

    def run(
        function: str,
        *,
        log: Path,
        env: list[dict[str, str]] | None = None,
        each: list[dict[str, Any]] | None = None,
        **arguments: Any,
    ) -> list[int | None]:
        many = len(env or each or [{}])
        if not server:
            server.append(_start())
        ranks = [
            {
                "env": variables,
                "log": f"{log}.{rank}" if rank else str(log),
                "function": function,
                "arguments": arguments | own,
            }
            for rank, (variables, own) in enumerate(
                zip(env or [{}] * many, each or [{}] * many, strict=True)
            )
        ]
        stdin, stdout = server[0].stdin, server[0].stdout
        assert stdin is not None and stdout is not None
        stdin.write(json.dumps({"ranks": ranks}) + "\n")
        stdin.flush()
        return json.loads(stdout.readline())

    yield run
    for process in server:
        process.communicate(timeout=30)


def _start() -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.support.fork_server"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()
