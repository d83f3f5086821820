"""What is written is there whole, or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

import moc.store.files
from moc.errors import DamagedFile
from moc.store.files import (
    read_json,
    read_lines,
    read_sound_json,
    read_text,
    seal_text,
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


@pytest.mark.parametrize("value", [{"x": [1.5, None, "ä"], "y": {}}, {"only": "one"}])
def test_a_changed_object_is_noticed(tmp_path: Path, value: dict[str, Any]) -> None:
    """Every single flipped bit, and every cut."""
    path = tmp_path / "a.json"
    write_json(path, value)
    content = path.read_bytes()
    assert json.loads(content).keys() == {*value, "checksum"}
    seal = content.index(b"checksum")
    for at in range(len(content) - 1):  # the last byte is a newline
        flipped = bytearray(content)
        flipped[at] ^= 1
        path.write_bytes(flipped)
        if seal <= at < seal + len(b"checksum"):  # another key: its value is nobody's
            assert value.items() <= read_json(path).items()
            continue
        with pytest.raises(DamagedFile, match=r"a\.json is damaged"):
            read_json(path)
        assert read_sound_json(path) == {}
        path.write_bytes(content[:at])
        with pytest.raises(DamagedFile):
            read_json(path)
    write_json(path, {**value, "checksum": "stale"})
    assert read_json(path) == value
    path.write_text(json.dumps(value))  # a person's
    assert read_json(path) == value
    for other in ("[1]", "7", "[" * 100_000):
        path.write_text(other)
        with pytest.raises(DamagedFile):
            read_json(path)


def test_a_changed_text_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("a: 1\n")
    with pytest.raises(DamagedFile, match=r"its end is missing.; write it again"):
        read_text(path, "write it again")
    seal_text(path)
    assert read_text(path, "") == "a: 1\n"
    path.write_text(path.read_text().replace("a: 1", "a: 2"))
    with pytest.raises(DamagedFile, match=r"its checksum differs.; write it again"):
        read_text(path, "write it again")


def test_what_must_survive_a_power_cut_is_on_disk_before_and_after_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Content, rename, then the folder that holds the name: also of folders that are new."""
    done: list[str] = []
    sync, replace, rename = moc.store.files.sync_path, os.replace, Path.rename

    def synced(path: Path) -> None:
        done.append(f"sync {path.relative_to(tmp_path)}")
        sync(path)

    def replaced(old: Path, new: Path) -> None:
        done.append(f"rename {old.name} {new.name}")
        replace(old, new)

    def renamed(old: Path, new: Path) -> Path:
        done.append(f"rename {old.name} {new.name}")
        return rename(old, new)

    monkeypatch.setattr(moc.store.files, "sync_path", synced)
    monkeypatch.setattr(os, "replace", replaced)
    monkeypatch.setattr(Path, "rename", renamed)
    write_json(tmp_path / "a/b.json", {}, sync=True)
    assert done == ["sync .", "sync a/b.json.partial", "rename b.json.partial b.json", "sync a"]
    done.clear()
    with whole_folder(tmp_path / "a/c") as new:
        (new / "d").write_text("1")
    assert done == ["sync a/c.partial/d", "sync a/c.partial", "rename c.partial c", "sync a"]
    done.clear()
    with whole_folder(tmp_path / "a/c"):
        pass  # the old one keeps its content until the new one has its name
    assert done == [
        *("sync a/c.partial", "rename c c.old.partial", "rename c.partial c", "sync a"),
    ]
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["b.json", "c"]


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
