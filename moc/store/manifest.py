"""What is in a checkpoint or boundary: checksums, and the format that it was written in.

``torch.load`` and safetensors load flipped bits without complaint.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moc.errors import CheckpointError, FormatError
from moc.store.files import damaged_files, read_sound_json, sha256, write_json

# of run directories and boundaries; 1 had no number, 2 other settings of memory and other names for
# its weights and records, 3 said nothing of the data that weights were trained on
FORMAT = 4


def write_manifest(folder: Path, **facts: Any) -> None:
    """Record ``facts``, the format and the SHA-256 of every file in ``folder``."""
    files = {path.name: sha256(path) for path in sorted(folder.iterdir())}
    write_json(folder / "manifest.json", {"format": FORMAT, **facts, "sha256": files})


def check_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of ``folder``, once every file it names has been verified.

    Raises:
        CheckpointError: naming the missing or damaged file, or another format.
    """
    manifest = read_manifest(folder)
    for path in damaged_files(folder, manifest["sha256"]):
        raise CheckpointError(f"{path} is missing or damaged (checksum differs)")
    return manifest


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of ``folder``, its files not verified.

    Raises:
        CheckpointError: if it cannot be read, or is of another format.
    """
    manifest = read_sound_json(folder / "manifest.json")
    if not manifest:
        raise CheckpointError(f"{folder}: manifest.json is missing or unreadable")
    check_format(manifest, folder)
    return manifest


def check_format(record: Mapping[str, Any], where: Path) -> None:
    """
    Raises:
        FormatError: if ``record`` was written in another format than this version's.
    """
    found = record.get("format", 1)
    if found != FORMAT:
        remedy = (
            "run the study again under another name (name=...), or go on with the version that "
            "wrote it"
            if found < FORMAT
            else "update moc"
        )
        raise FormatError(
            f"{where} is in format {found}; this version of moc reads and writes format {FORMAT}: "
            f"{remedy}"
        )
