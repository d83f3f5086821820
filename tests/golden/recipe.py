"""The tiny study behind the golden losses: fifty steps of the memory arm, for every scope."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from tests.support.helpers_training import tiny_study, train_phase

LOSSES = Path(__file__).with_name("losses.json")
SCOPES = ("sequence", "segment", "token")


def current_losses(folder: Path, scope: str) -> list[float]:
    """Training losses of steps 1 to 50 with seed 0, on one CPU thread; ``folder`` takes caches."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        study = tiny_study(
            folder,
            f"phases.facts.tokens={50 * 256}",
            "phases.facts.schedule.warmup_steps=5",
            f"model.memory.chapters.router.scope={scope}",
        )
        _, recorder = train_phase(study, folder)
    finally:
        torch.set_num_threads(num_threads)
    return recorder.losses()


def golden_losses() -> dict[str, list[float]]:
    """Recorded losses by scope; empty before the first record."""
    return json.loads(LOSSES.read_text()) if LOSSES.is_file() else {}
