"""``make mutants``: every mutant in a copy of the sources, with the tests that must notice it.

``python -m tests.mutants WORD ...`` takes only those whose name or file holds a word.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.mutants import Mutant
from tests.mutants.all import MUTANTS

ROOT = Path(__file__).parents[2]
NUM_WORKERS = 2
TIMEOUT_SEC = 300
TESTS_FAILED = 1  # pytest's exit code; any other is a mistake in the list


def main(words: list[str]) -> int:
    chosen = [m for m in MUTANTS if not words or any(w in m.what + m.file for w in words)]
    with ThreadPoolExecutor(NUM_WORKERS) as pool:
        alive = [what for what in pool.map(_try, chosen) if what is not None]
    print(f"{len(chosen) - len(alive)} of {len(chosen)} mutants killed")
    return 1 if alive or not chosen else 0


def _try(mutant: Mutant) -> str | None:
    """None if a test noticed."""
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for part in ("moc", "evals", "tests", "experiments", "docs"):
            ignored = shutil.ignore_patterns("__pycache__", "*.pyc")
            shutil.copytree(ROOT / part, copy / part, ignore=ignored)
        for file in (
            "pyproject.toml",
            "README.md",
            "Makefile",
            "requirements.lock",
            "requirements-cuda.lock",
        ):
            shutil.copy(ROOT / file, copy)
        broken = copy / mutant.file
        text = broken.read_text()
        assert text.count(mutant.old) == 1, f"{mutant.what}: not once in {mutant.file}"
        broken.write_text(text.replace(mutant.old, mutant.new))
        command = [sys.executable, "-m", "pytest", "-x", "-q", "--no-header", *mutant.tests]
        env = {**os.environ, "PYTHONPATH": folder, "OMP_NUM_THREADS": "1"}
        try:
            run = subprocess.run(
                command, cwd=copy, env=env, capture_output=True, text=True, timeout=TIMEOUT_SEC
            )
            code, output = run.returncode, run.stdout
        except subprocess.TimeoutExpired:
            code, output = None, "took too long"
    took = f"{time.monotonic() - begun:.0f} s"
    if code == TESTS_FAILED:
        print(f"killed    {mutant.what} ({took})", flush=True)
        return None
    why = "no test failed" if code == 0 else f"pytest ended with {code}: {output[-300:]}"
    print(f"SURVIVED  {mutant.what} ({mutant.file}, {took}): {why}", flush=True)
    return mutant.what


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
