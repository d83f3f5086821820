"""Files and folders that appear whole or not at all, and reading them again.

Everything is written under ``<name>.partial`` beside its target and renamed: a reader never sees
half of it, and what a kill left behind is known by its name. What must survive a power cut is
synced before the rename, and its folder after it.

A JSON object ends with a checksum of the text above it, so that a flipped byte is noticed and not
taken for a value. One without is read, too: a person may have written it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from moc.errors import DamagedFile

PARTIAL = ".partial"
_CHECKSUM = "checksum"
_COMMENT = "# checksum: "
_SEAL = re.compile(r',\n  "checksum": "(?P<checksum>[^"]*)"\n}\n\Z')


def write_bytes(path: Path, content: bytes, *, sync: bool = False) -> None:
    """With ``sync``, it is on disk before it takes its name, and the name before this returns."""
    with whole_file(path, sync=sync) as partial:
        partial.write_bytes(content)


@contextmanager
def whole_file(path: Path, *, sync: bool = False) -> Iterator[Path]:
    """Where to write what becomes the file ``path``; after an exception ``path`` is as it was."""
    _make_folder(path.parent, sync=sync)
    partial = _partial(path)
    try:
        yield partial
        if sync:
            sync_path(partial)
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    if sync:
        sync_path(path.parent)


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode())


def write_json(path: Path, value: Mapping[str, Any], *, sync: bool = False) -> None:
    """An object and its checksum, which ``read_json`` verifies and leaves out."""
    text = json.dumps({k: v for k, v in value.items() if k != _CHECKSUM}, indent=2)
    if text != "{}":
        text = text.removesuffix("\n}") + f',\n  "{_CHECKSUM}": "{_checksum(text)}"\n}}'
    write_bytes(path, f"{text}\n".encode(), sync=sync)


def write_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """One JSON object a line."""
    write_text(path, "".join(json.dumps(record) + "\n" for record in records))


def read_json(path: Path) -> dict[str, Any]:
    """The object in ``path``; empty if there is no file.

    Raises:
        DamagedFile: if it is cut short or changed.
    """
    if not path.is_file():
        return {}
    try:
        text = path.read_bytes().decode()
        value = json.loads(text)
    except FileNotFoundError:
        return {}  # removed this moment, as locks are
    except (ValueError, RecursionError):
        raise DamagedFile(path, "not JSON") from None
    if not isinstance(value, dict):
        raise DamagedFile(path, "not an object")
    if found := _SEAL.search(text):
        if found["checksum"] != _checksum(text[: found.start()] + "\n}"):
            raise DamagedFile(path, "its checksum differs")
        del value[_CHECKSUM]
    return value


def seal_text(path: Path) -> None:
    """End a text file, such as YAML, with its checksum as a comment; before it gets its name."""
    text = path.read_text()
    path.write_text(f"{text}{_COMMENT}{_checksum(text)}\n")


def read_text(path: Path, remedy: str) -> str:
    """A text file that ``seal_text`` ended, without its checksum: half of it may be good YAML.

    Raises:
        DamagedFile: if it is cut short or changed; it ends with ``remedy``.
    """
    try:
        text, mark, checksum = path.read_bytes().decode().rpartition(_COMMENT)
    except ValueError:
        raise DamagedFile(path, "not text", remedy) from None
    if not mark or checksum.strip() != _checksum(text):
        raise DamagedFile(path, "its checksum differs" if mark else "its end is missing", remedy)
    return text


def read_sound_json(path: Path) -> dict[str, Any]:
    """As ``read_json``, of what is made again where it is missing: empty if it is damaged, too."""
    try:
        return read_json(path)
    except DamagedFile:
        return {}


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects in ``path``, one a line; none if there is no file.

    Raises:
        DamagedFile: if a line is no JSON.
    """
    try:
        lines = path.read_bytes().decode().splitlines() if path.is_file() else []
        return [json.loads(line) for line in lines]
    except (ValueError, RecursionError):
        raise DamagedFile(path, "not JSON lines") from None


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def damaged_files(folder: Path, sha256s: Mapping[str, str]) -> list[Path]:
    """Those of the files in ``folder``, named with their SHA-256, that are missing or changed."""
    return [
        folder / name
        for name, expected in sha256s.items()
        if not (folder / name).is_file() or sha256(folder / name) != expected
    ]


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """An empty folder to fill, which becomes ``target`` (in its place, if there was one) once all
    of it is on disk; after an exception there is nothing new."""
    partial = _partial(target)
    shutil.rmtree(partial, ignore_errors=True)
    _make_folder(target.parent, sync=True)
    partial.mkdir()
    try:
        yield partial
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    for path in [*partial.rglob("*"), partial]:
        sync_path(path)
    old = _partial(target.with_name(f"{target.name}.old"))
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)  # not removed yet: between the two renames both are whole
    partial.rename(target)
    sync_path(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def _checksum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _partial(path: Path) -> Path:
    return path.with_name(path.name + PARTIAL)


def _make_folder(folder: Path, *, sync: bool) -> None:
    """``folder`` and those above it; with ``sync``, the name of each new one is on disk."""
    if folder.is_dir():
        return
    _make_folder(folder.parent, sync=sync)
    folder.mkdir(exist_ok=True)
    if sync:
        sync_path(folder.parent)


def sync_path(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
