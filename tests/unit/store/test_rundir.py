"""Where things are, and which format they are in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from moc.errors import FormatError
from moc.store.files import write_json
from moc.store.manifest import FORMAT, read_manifest, write_manifest
from moc.store.rundir import Boundary, StudyDir


def test_paths(tmp_path: Path) -> None:
    run = StudyDir(tmp_path).run("moc", 3, ["facts", "skills-b"])
    assert run.path == tmp_path / "arms/moc/seed-3" and (run.arm, run.seed) == ("moc", 3)
    assert [run.boundary(i).name for i in range(3)] == ["0-start", "1-facts", "2-skills-b"]
    last = Boundary(run.boundary(2))
    assert (last.index, last.name, last.run.path) == (2, "skills-b", run.path)


def test_boundaries_come_in_order_and_unfinished_ones_are_none(tmp_path: Path) -> None:
    run = StudyDir(tmp_path).run("moc", 0)
    for name in ("10-k", "2-b", "0-start", "3-c.partial"):
        write_json(run.path / "boundaries" / name / "model.json", {})
    (run.path / "boundaries/4-d").mkdir()
    assert [boundary.index for boundary in run.boundaries()] == [0, 2, 10]


@pytest.mark.parametrize(("found", "remedy"), [(1, "another name"), (FORMAT + 1, "update moc")])
def test_another_format_ends_in_one_line(tmp_path: Path, found: int, remedy: str) -> None:
    study = StudyDir(tmp_path)
    run = study.run("moc", 0)
    write_json(run.info, {"format": FORMAT})
    study.check_format()
    write_json(run.info, {} if found == 1 else {"format": found})  # 1 had no number
    with pytest.raises(FormatError, match=f"seed-0 is in format {found}; .*{remedy}") as error:
        study.check_format()
    assert "\n" not in str(error.value)
    boundary = run.boundary(0)
    boundary.mkdir(parents=True)
    write_manifest(boundary, step=0)
    assert read_manifest(boundary)["format"] == FORMAT
    record = json.loads((boundary / "manifest.json").read_text()) | {"format": found}
    write_json(boundary / "manifest.json", record)
    with pytest.raises(FormatError, match=remedy):
        read_manifest(boundary)
