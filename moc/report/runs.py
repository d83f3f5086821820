"""What one run directory says. Missing files are missing results, not errors."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moc.store.journal import Record, read


@dataclass
class Probe:
    """A copy of one boundary's model, trained on and scored as it went."""

    record: dict[str, Any]  # probe.json
    dir: Path  # where its samples are

    @property
    def name(self) -> str:
        return self.record["probe"]

    @property
    def boundary(self) -> str:
        return self.record["boundary"]

    def curve(self, task: str) -> list[tuple[int, float]]:
        """Tokens and score of every point that has ``task``."""
        points = self.record["points"]
        return [(p["tokens"], p["tasks"][task]["value"]) for p in points if task in p["tasks"]]

    def num_items(self, task: str) -> int:
        points = [point["tasks"] for point in self.record["points"] if task in point["tasks"]]
        return points[0][task]["num_items"]

    def samples(self, task: str) -> list[Record]:
        """The item records before the first step; empty where there are none."""
        return read_lines(self.dir / "samples-0" / f"{task}.jsonl")


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
    probes: list[Probe] = field(default_factory=list)
    dir: Path | None = None  # where its samples are
    shared: dict[str, Any] = field(default_factory=dict)  # shared.json: arm and phases taken over

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

    def samples(self, boundary: str, task: str, control: str = "") -> list[Record]:
        """The item records behind a score, read from disk; empty where there are none."""
        if self.dir is None or boundary not in self.evals:
            return []
        name = f"{self.evals[boundary]['index']}-{boundary}"
        folder = self.dir / "boundaries" / name / "samples" / control
        return read_lines(folder / f"{task}.jsonl")


def load_run(run_dir: Path, arm: str, seed: int) -> Run:
    """What ``run_dir`` holds; of a run that has not started, nothing."""
    folders = [path for path in run_dir.glob("boundaries/*") if path.suffix != ".partial"]
    evals = [read_json(path / "evals.json") for path in folders if (path / "evals.json").is_file()]
    evals.sort(key=lambda record: record["index"])
    newest = f"boundaries/{evals[-1]['index']}-{evals[-1]['boundary']}" if evals else "none"
    probes = sorted(run_dir.glob("probes/*/*/probe.json"))
    return Run(
        arm=arm,
        seed=seed,
        info=read_json(run_dir / "run.json"),
        metrics=read(run_dir / "metrics.jsonl"),
        chapters=read(run_dir / "chapters.jsonl"),
        evals={record["boundary"]: record for record in evals},
        model=read_json(run_dir / newest / "model.json"),
        probes=[Probe(read_json(path), path.parent) for path in probes],
        dir=run_dir,
        shared=read_json(run_dir / "shared.json"),
    )


def read_json(path: Path) -> dict[str, Any]:
    """Empty if there is no file."""
    return json.loads(path.read_text()) if path.is_file() else {}


def read_lines(path: Path) -> list[Record]:
    """One JSON object a line; none if there is no file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
