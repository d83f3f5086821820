"""When a boundary's scores stand."""

from __future__ import annotations

from pathlib import Path

from moc.evaluate.record import is_recorded, sample_hashes, write_samples
from moc.store.files import write_json
from moc.store.rundir import Boundary


def test_scores_stand_while_all_behind_them_is_whole(tmp_path: Path) -> None:
    boundary = Boundary(tmp_path / "1-facts")
    assert not is_recorded(boundary, "now")
    write_samples(boundary.samples, {"task": [{"correct": True}]})
    write_samples(boundary.samples / "knockout-bank", {"task": [{"correct": False}]})
    hashes = sample_hashes(boundary.samples)
    assert sorted(hashes) == ["knockout-bank/task.jsonl", "task.jsonl"]
    write_json(boundary.evals, {"eval_hash": "now", "samples": hashes})
    assert is_recorded(boundary, "now") and not is_recorded(boundary, "other")
    file = boundary.samples / "knockout-bank/task.jsonl"
    file.write_text(file.read_text().replace("false", "true"))
    assert not is_recorded(boundary, "now")
    write_samples(file.parent, {"task": [{"correct": False}]})
    assert is_recorded(boundary, "now")
    boundary.evals.write_text(boundary.evals.read_text()[:-9])
    assert not is_recorded(boundary, "now")
