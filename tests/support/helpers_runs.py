"""What a run of the tiny study left on disk."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from moc.store.files import read_json
from moc.store.journal import Record, read

Moc = Callable[..., tuple[int | None, str]]  # (*overrides, stop=...) -> exit code and output
BOUNDARIES = ["0-start", "1-facts", "2-skills"]


def run_dir(folder: Path) -> Path:
    return folder / "runs/tiny/arms/moc/seed-0"


def outcome(folder: Path) -> dict[str, Any]:
    """All that should not depend on interruptions."""
    run = run_dir(folder)
    scores = {}
    for name in BOUNDARIES:
        scores[name] = read_json(run / f"boundaries/{name}/evals.json")
        del scores[name]["elapsed_sec"]
    records = read(run / "metrics.jsonl")
    return {
        "weights": [
            (run / f"boundaries/{name}/model.safetensors").read_bytes() for name in BOUNDARIES
        ],
        "scores": scores,
        "losses": {
            (record["phase"], record["step"]): record["metrics"][f"{record['phase']}/train/loss"]
            for record in records
            if f"{record['phase']}/train/loss" in record["metrics"]
        },
        "records": Counter(
            (record["phase"], record["step"], "eval/people/bits_per_byte" in record["metrics"])
            for record in records
        ),
        "chapters": Counter(
            (record["phase"], record["step"], record["layer"])
            for record in read(run / "memory_use.jsonl")
        ),
        "utilisation": _lines(run / "memory_use.jsonl"),
        "revivals": _lines(run / "revivals.jsonl"),
        "checkpoints": sorted(path.name for path in (run / "checkpoints").glob("*")),
    }


def _lines(path: Path) -> list[Record]:
    """In the order of steps: a phase that was trained again stands behind those after it."""
    lines = [{key: value for key, value in line.items() if key != "time"} for line in read(path)]
    which = ("phase", "step", "layer", "bank")
    return sorted(lines, key=lambda line: [line[key] for key in which if key in line])


def check_same(folder: Path, undisturbed: dict[str, Any]) -> None:
    found = outcome(folder)
    for key, expected in undisturbed.items():
        assert found[key] == expected, key
    assert json.loads((run_dir(folder) / "run.json").read_text())["status"] == "finished"


def contents(folder: Path) -> dict[Path, bytes]:
    files = [path for path in (folder / "runs").rglob("*") if path.is_file()]
    return {path: path.read_bytes() for path in files if path.name != ".lock"}


def complaint(log: str) -> str:
    """The one line that explains what is wrong."""
    assert "Traceback" not in log
    (line,) = [line for line in log.splitlines() if line.startswith("moc: ")]
    return line
