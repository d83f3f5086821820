"""Writes ``requirements.lock`` and ``requirements-cuda.lock`` (``make lock``): every package that
the project needs, pinned with the hashes of all its files, for Linux, macOS and Windows.

Packages that only a CUDA build of torch needs are a file of their own: gigabytes, which a CPU build
does without. Pins stay what they are: take a line out to have that package anew.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
LOCK, CUDA_LOCK = ROOT / "requirements.lock", ROOT / "requirements-cuda.lock"
FOR_CUDA = ("nvidia-", "cuda-")
# PyTorch's own build 2.13.0+cpu for Python 3.11 on Linux (x86_64), which pip prefers to the CUDA
# build where it is pointed to one (find-links)
CPU_TORCH = "6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b"


def main() -> None:
    command = [sys.executable, "-m", "uv", "pip", "compile", "pyproject.toml", "--all-extras"]
    command += ["--universal", "--python-version", "3.11", "--generate-hashes", "--no-annotate"]
    command += ["--no-header", "--quiet"]
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as pins:
        pins.writelines(f"{name}=={version}\n" for name, version in versions().items())
        pins.flush()
        command += ["--constraints", pins.name]
        done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    compiled = done.stdout
    entries = re.findall(r"^\S.*?(?=^\S|\Z)", compiled, re.DOTALL | re.MULTILINE)
    cuda = [entry for entry in entries if entry.startswith(FOR_CUDA)]
    rest = [_with_cpu_build(entry) for entry in entries if entry not in cuda]
    head = "# made by `make lock`; see tests/support/lock.py\n"
    LOCK.write_text(head + "".join(rest))
    CUDA_LOCK.write_text(head + "".join(cuda))


def versions(*files: Path) -> dict[str, str]:
    """Package -> version, of these lock files (default: both)."""
    text = "".join(file.read_text() for file in files or (LOCK, CUDA_LOCK))
    return dict(re.findall(r"^([\w.-]+)==([^\s;]+)", text, re.MULTILINE))


def _with_cpu_build(entry: str) -> str:
    if not entry.startswith("torch=="):
        return entry
    return f"{entry.rstrip()} \\\n    --hash=sha256:{CPU_TORCH}\n"


if __name__ == "__main__":
    main()
