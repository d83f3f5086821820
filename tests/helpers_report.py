"""Made-up studies for tests of the report, with single numbers set by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from moc.report.layout import Table
from tests.fake_runs import fake_study, write_json, write_study


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
