"""What is written of a boundary's scores, beside ``evals.json`` itself."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from evals.measures.chapter_use import router_drift
from evals.measures.picks import overlap
from moc.model.files import read_safetensors
from moc.store.files import write_text


def write_samples(folder: Path, samples: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """One file of JSON lines per task."""
    for task, items in samples.items():
        text = "".join(json.dumps(item) + "\n" for item in items)
        write_text(folder / f"{task}.jsonl", text)


def earlier_boundaries(folder: Path, index: int) -> list[Path]:
    """The boundaries of the same run with a number below ``index``, in order."""
    found = [path.parent for path in folder.parent.glob("*/model.safetensors")]
    numbered = {_number(path): path for path in found if path.suffix != ".partial"}
    return [numbered[number] for number in sorted(numbered) if number < index]


def earlier_records(folder: Path, index: int, eval_hash: str) -> list[dict[str, Any]]:
    """Those of their records that the same evaluation made, in order."""
    files = [path / "evals.json" for path in earlier_boundaries(folder, index)]
    records = [json.loads(path.read_text()) for path in files if path.is_file()]
    return [record for record in records if record["eval_hash"] == eval_hash]


def logged(scores: Mapping[str, Any]) -> dict[str, float]:
    """The headline figures of ``scores``, by metric name."""
    metrics = {}
    for task, score in scores["tasks"].items():
        metrics[f"eval/{task}/{score['metric']}"] = score["value"]
    for source, value in scores["bits_per_byte"].items():
        metrics[f"eval/{source}/bits_per_byte"] = value
    for control, record in scores["controls"].items():
        for task, score in record["tasks"].items():
            metrics[f"control/{control}/{task}"] = score["value"]
    for source, record in scores["leakage"].get("sources", {}).items():
        if "leakage" in record:
            metrics[f"eval/{source}/leakage"] = record["leakage"]["value"]
    for task, record in scores["leakage"].get("tasks", {}).items():
        metrics[f"eval/{task}/leakage"] = record["leakage"]["value"]
    return metrics


def compare_routing(
    folder: Path, scores: dict[str, Any], earlier: Sequence[Mapping[str, Any]]
) -> dict[str, float]:
    """How far routing has moved since the boundary before, by metric name.

    Adds ``drift`` to ``scores["routing"]``.
    """
    if not scores["routing"] or not earlier:
        return {}
    last = earlier[-1]
    before = folder.parent / f"{last['index']}-{last['boundary']}"
    weights = [read_safetensors(path / "model.safetensors") for path in (before, folder)]
    drift = router_drift(*weights)
    scores["routing"]["drift"] = {str(layer): value for layer, value in drift.items()}
    metrics = {"router/drift": fmean(drift.values())}
    for source, now in scores["routing"]["sources"].items():
        then = last["routing"]["sources"][source]["load"]
        shared = [overlap(then[layer], load)["mass"] for layer, load in now["load"].items()]
        metrics[f"eval/{source}/chapter_overlap"] = fmean(shared)
    return metrics


def _number(boundary: Path) -> int:
    return int(boundary.name.partition("-")[0])
