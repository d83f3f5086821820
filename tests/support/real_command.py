"""The command as a user starts it: a process, and a session, of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from moc.store.journal import read
from tests.conftest import ROOT
from tests.support.helpers_runs import run_dir

MAX_START_SEC = 120


def trains(folder: Path, arguments: Sequence[str], **environment: str) -> subprocess.Popen[bytes]:
    """``python ARGUMENTS``, which trains the tiny study in ``folder``, once five records are in its
    journal. Its output goes to ``folder/log``."""
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    deadline = time.monotonic() + MAX_START_SEC
    while len(read(run_dir(folder) / "metrics.jsonl")) < 5 and time.monotonic() < deadline:
        time.sleep(0.005)
    return process
