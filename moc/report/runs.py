"""What one run directory says. Missing files are missing results, not errors."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moc.journal import Record, read


@dataclass
class Run:
    """One arm and seed."""

    arm: str
    seed: int
    info: dict[str, Any] = field(default_factory=dict)  # run.json; empty if it never started
    metrics: list[Record] = field(default_factory=list)
    chapters: list[Record] = field(default_factory=list)
    evals: dict[str, dict[str, Any]] = field(default_factory=dict)  # boundary -> EvalRecord
    model: dict[str, Any] = field(default_factory=dict)  # model.json of the newest boundary

    def series(self, name: str) -> tuple[list[int], list[float]]:
        """Training tokens and values of one metric, in the order they were logged."""
        found = [
            (record["tokens"], float(record["metrics"][name]))
            for record in self.metrics
            if name in record.get("metrics", {})
        ]
        return [tokens for tokens, _ in found], [value for _, value in found]

    def last_windows(self, phase: str) -> list[Record]:
        """The chapter counts of the last window of ``phase``, one per memory layer, by layer."""
        records = [record for record in self.chapters if record["phase"] == phase]
        last = max((record["step"] for record in records), default=None)
        by_layer = {record["layer"]: record for record in records if record["step"] == last}
        return [by_layer[layer] for layer in sorted(by_layer)]


def load_run(run_dir: Path, arm: str, seed: int) -> Run:
    """What ``run_dir`` holds; of a run that has not started, nothing."""
    evals = [read_json(path) for path in run_dir.glob("boundaries/*/evals.json")]
    evals.sort(key=lambda record: record["index"])
    newest = f"boundaries/{evals[-1]['index']}-{evals[-1]['boundary']}" if evals else "none"
    return Run(
        arm=arm,
        seed=seed,
        info=read_json(run_dir / "run.json"),
        metrics=read(run_dir / "metrics.jsonl"),
        chapters=read(run_dir / "chapters.jsonl"),
        evals={record["boundary"]: record for record in evals},
        model=read_json(run_dir / newest / "model.json"),
    )


def read_json(path: Path) -> dict[str, Any]:
    """Empty if there is no file."""
    return json.loads(path.read_text()) if path.is_file() else {}
