"""Where a run keeps what. The files are the truth; MLflow and the report are made from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from moc.store.journal import Journal

# Ends of names in a boundary's evals.json.
ON_ANSWER = ".full"  # of a task: its answers were routed on as well
TRAINED = "-trained"  # of a source: its training text, not its validation text

# In a study's folder report/: what the report says in short, for whoever shows a list of studies.
SUMMARY_TEXT = "summary.md"
SUMMARY_VALUES = "summary.json"  # {metric: value}


@dataclass(frozen=True)
class RunDir:
    """One arm and seed of a study: ``<study>/arms/<arm>/seed-<seed>``."""

    path: Path
    phases: Sequence[str]

    @classmethod
    def of(cls, study_dir: Path, arm: str, seed: int, phases: Sequence[str]) -> RunDir:
        return cls(study_dir / "arms" / arm / f"seed-{seed}", tuple(phases))

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def boundary_name(self, index: int) -> str:
        """``start`` before the first phase, else the name of the phase that ended."""
        return self.phases[index - 1] if index else "start"

    def boundary(self, index: int) -> Path:
        return self.path / "boundaries" / f"{index}-{self.boundary_name(index)}"

    def journal(self) -> Journal:
        return Journal(self.path / "metrics.jsonl")

    def chapters(self) -> Journal:
        return Journal(self.path / "chapters.jsonl")

    def revivals(self) -> Journal:
        return Journal(self.path / "revivals.jsonl")
