"""What a study's numbers were made with: versions, machine, code."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("torch", "lightning", "mlflow", "lm-eval", "datasets", "tokenizers", "omegaconf")


def describe_environment(device: torch.device, peak_flops: float | None) -> dict[str, Any]:
    """What ``environment.json`` records; ``peak_flops`` is one device's matmul peak."""
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
        "git_commit": git_commit(),
        "machine": platform.processor() or platform.machine(),
        "cpu_count": os.cpu_count(),
        "num_threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if device.type == "cuda" else None,
        "matmul_peak_flops": peak_flops,
    }


def git_commit() -> str | None:
    """The commit of this code, with ``-dirty`` when files differ from it; None outside git."""
    here = Path(__file__).resolve().parent
    command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return result.stdout.strip()
