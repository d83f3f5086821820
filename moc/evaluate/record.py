"""What is written of a boundary's scores, beside ``evals.json`` itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from evals.measures.overlap import overlap
from evals.measures.row_use import address_drift
from moc.model.files import read_safetensors
from moc.store.files import damaged_files, read_sound_json, sha256, write_lines
from moc.store.rundir import Boundary


def write_samples(folder: Path, samples: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """One file of JSON lines per task."""
    for task, items in samples.items():
        write_lines(folder / f"{task}.jsonl", items)


def sample_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of ``write_samples`` below ``folder``."""
    files = sorted(folder.rglob("*.jsonl"))
    return {file.relative_to(folder).as_posix(): sha256(file) for file in files}


def is_recorded(boundary: Boundary, eval_hash: str) -> bool:
    """Whether ``boundary`` holds the result of that evaluation, and nothing of it is damaged."""
    record = read_sound_json(boundary.evals)
    if record.get("eval_hash") != eval_hash:
        return False
    return not damaged_files(boundary.samples, record.get("samples", {}))


def earlier_boundaries(boundary: Boundary) -> list[Boundary]:
    """The boundaries of the same run before this one, in order."""
    return [each for each in boundary.run.boundaries() if each.index < boundary.index]


def earlier_records(boundary: Boundary, eval_hash: str) -> list[dict[str, Any]]:
    """Those of their records that the same evaluation made, in order."""
    records = [read_sound_json(each.evals) for each in earlier_boundaries(boundary)]
    return [record for record in records if record.get("eval_hash") == eval_hash]


def logged(scores: Mapping[str, Any]) -> dict[str, float]:
    """The headline figures of ``scores``, by metric name."""
    metrics = {}
    for task, score in scores["tasks"].items():
        metrics[f"eval/{task}/{score['metric']}"] = score["value"]
    for source, value in scores["bits_per_byte"].items():
        metrics[f"eval/{source}/bits_per_byte"] = value
    for source, record in scores["knowledge"].items():
        metrics[f"eval/{source}/stored_bits"] = record["stored"]
        metrics[f"eval/{source}/values_right"] = record["right"]
    for control, record in scores["controls"].items():
        for source, known in record["knowledge"].items():
            metrics[f"control/{control}/{source}/stored_bits"] = known["stored"]
        for task, score in record["tasks"].items():
            metrics[f"control/{control}/{task}"] = score["value"]
    for source, record in scores["leakage"].get("sources", {}).items():
        if "leakage" in record:
            metrics[f"eval/{source}/leakage"] = record["leakage"]["value"]
    for task, record in scores["leakage"].get("tasks", {}).items():
        metrics[f"eval/{task}/leakage"] = record["leakage"]["value"]
    return metrics


def compare_use(
    boundary: Boundary, scores: dict[str, Any], earlier: Sequence[Mapping[str, Any]]
) -> dict[str, float]:
    """How far addresses have moved since the boundary before, by metric name.

    Adds ``drift`` to ``scores["memory"]``.
    """
    if not scores["memory"] or not earlier:
        return {}
    last = earlier[-1]
    (before,) = [each for each in boundary.run.boundaries() if each.index == last["index"]]
    drift = address_drift(*(read_safetensors(each.weights) for each in (before, boundary)))
    scores["memory"]["drift"] = {str(layer): value for layer, value in drift.items()}
    metrics = {"memory/drift": fmean(drift.values())} if drift else {}
    for source, now in scores["memory"]["sources"].items():
        then = last["memory"]["sources"][source]["load"]
        kept = [overlap(then[layer], load)["mass"] for layer, load in now["load"].items()]
        if kept:
            metrics[f"eval/{source}/row_overlap"] = fmean(kept)
    return metrics
