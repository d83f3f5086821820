"""Made-up studies for tests of the report, with single numbers set by hand."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from moc.report.tables.layout import Table
from tests.support.fake_items import write_samples
from tests.support.fake_runs import fake_study, write_json, write_study


def study_of(runs_dir: Path, seeds: int, *arms: str) -> Path:
    """The folder of a finished study with so many seeds."""
    study = fake_study(runs_dir, seeds=tuple(range(seeds)), num_steps=(40, 40), arms=arms)
    return write_study(study)


def change_evals(
    folder: Path, change: Callable[[dict[str, Any]], None], where: str = "*/*/*/*"
) -> None:
    """``change`` every evals.json whose arm, seed and boundary match ``where``."""
    found = sorted((folder / "arms").glob(f"{where}/evals.json"))
    assert found
    for path in found:
        record = json.loads(path.read_text())
        change(record)
        write_json(path, record)


def row_of(table: Table, *keys: str) -> dict[str, str]:
    """Column -> cell of the only row that starts with ``keys``."""
    found = [row for row in table.rows if row[: len(keys)] == list(keys)]
    assert len(found) == 1, keys
    return dict(zip(table.header, found[0], strict=True))


def set_right(
    folder: Path,
    arm: str,
    boundary: str,
    task: str,
    right: Sequence[int],
    *,
    seed: int | str = "*",
    control: str = "",
) -> None:
    """Item ``i`` of ``task`` was answered rightly where ``right[i]`` is 1; every item is of its own
    cluster and there are as many as ``right`` has."""
    found = sorted((folder / "arms").glob(f"{arm}/seed-{seed}/boundaries/*-{boundary}"))
    assert found
    for path in found:
        samples = [
            {"doc_hash": f"h{i}", "doc_id": i, "correct": one, "cluster": f"h{i}"}
            for i, one in enumerate(right)
        ]
        write_samples(path / "samples" / control, task, samples)
        record = json.loads((path / "evals.json").read_text())
        part = record["controls"][control] if control else record
        score = {"value": sum(right) / len(right), "num_items": len(right)}
        part["tasks"][task] |= score
        write_json(path / "evals.json", record)


def share(right: int, total: int = 100) -> list[int]:
    """The first ``right`` of ``total`` items."""
    return [1] * right + [0] * (total - right)
