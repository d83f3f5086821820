"""What is written is there whole, or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from moc.store.files import (
    read_json,
    read_lines,
    whole_folder,
    write_bytes,
    write_json,
    write_lines,
    write_text,
)


def test_files_come_back_as_they_were_written(tmp_path: Path) -> None:
    write_json(tmp_path / "a/b.json", {"x": [1, None, "ä"]})
    assert read_json(tmp_path / "a/b.json") == {"x": [1, None, "ä"]}
    write_lines(tmp_path / "l.jsonl", [{"x": 1}, {"y": "\n"}])
    assert read_lines(tmp_path / "l.jsonl") == [{"x": 1}, {"y": "\n"}]
    write_bytes(tmp_path / "b", b"\0\1", sync=True)
    assert (tmp_path / "b").read_bytes() == b"\0\1"
    assert read_json(tmp_path / "none.json") == {} and read_lines(tmp_path / "none.jsonl") == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "l.jsonl"]


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "f.txt"
    write_text(path, "old")

    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="no space"):
        write_text(path, "new")
    assert path.read_text() == "old"


def test_a_folder_replaces_another_only_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    with whole_folder(target) as new:
        assert not target.exists()
        (new / "one").write_text("1")
    assert (target / "one").read_text() == "1"
    with pytest.raises(FileNotFoundError), whole_folder(target) as new:
        (new / "missing/two").write_text("2")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
    with whole_folder(target) as new:
        (new / "three").write_text("3")
    assert [path.name for path in target.iterdir()] == ["three"]
