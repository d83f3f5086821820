"""The local data of a user's task: files that its YAML names, read into memory.

The stock loaders keep a cache that can go stale, may ask the network, and turn texts that look like
dates into dates.
"""

from __future__ import annotations

import csv
import glob
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from evals.scoring.task_yaml import FORMATS, one_line
from moc.errors import ConfigError

_SUFFIXES = {
    ".json": "json",
    ".jsonl": "json",
    ".csv": "csv",
    ".parquet": "parquet",
    ".txt": "text",
}


def data_files(config: Mapping[str, Any]) -> dict[str, list[Path]]:
    """The files of every split that a task's config names.

    ``dataset_path`` is one of ``FORMATS`` with ``dataset_kwargs.data_files`` (a path or glob, or
    several, by split or all ``train``), or a folder of ``<split>.<suffix>`` or
    ``<split>-*.<suffix>``.

    Raises:
        ConfigError: for data that is not local, or missing.
    """
    path, kwargs = config.get("dataset_path"), config.get("dataset_kwargs") or {}
    if path in FORMATS:
        unread = [key for key in kwargs if key not in ("data_files", "trust_remote_code")]
        if unread:
            raise ConfigError(f"dataset_kwargs.{unread[0]} is not read here; leave it out")
        files = kwargs.get("data_files")
        if not files:
            raise ConfigError(f"dataset_path {path} needs dataset_kwargs.data_files")
        by_split = files if isinstance(files, dict) else {"train": files}
        return {
            str(split): [
                found
                for pattern in (each if isinstance(each, list) else [each])
                for found in _matching(str(pattern))
            ]
            for split, each in by_split.items()
        }
    if path is None or not Path(str(path)).is_dir():
        raise ConfigError(
            f"no local data: dataset_path is {path!r}; name a folder beside the YAML, or one of "
            f"{', '.join(FORMATS)} with dataset_kwargs.data_files"
        )
    folder = Path(str(path)) / str(config.get("dataset_name") or "")
    splits = _splits_of(config)
    found = {split: _of_split(folder, split) for split in splits}
    scored = config.get("test_split") or config.get("validation_split")
    if scored and not found[scored]:
        suffixes = "|".join(suffix[1:] for suffix in _SUFFIXES)
        raise ConfigError(f"no local data: {folder} has no {scored}.{suffixes}")
    return {split: paths for split, paths in found.items() if paths}


def read_data(files: Mapping[str, list[Path]], dataset_path: str) -> datasets.DatasetDict:
    """The splits of ``data_files``.

    Raises:
        ConfigError: for a file that is empty or cannot be read.
    """
    kind = dataset_path if dataset_path in FORMATS else None
    return datasets.DatasetDict(
        {
            split: datasets.concatenate_datasets([_read(path, kind) for path in paths])
            for split, paths in files.items()
        }
    )


def _splits_of(config: Mapping[str, Any]) -> list[str]:
    names = ("training_split", "validation_split", "test_split", "fewshot_split")
    shown = config.get("fewshot_config") or {}
    found = [config.get(name) for name in names] + [shown.get("split")]
    return list(dict.fromkeys(str(split) for split in found if split))


def _of_split(folder: Path, split: str) -> list[Path]:
    found = [
        path
        for path in folder.glob(f"{glob.escape(split)}*")
        if path.suffix in _SUFFIXES and (path.stem == split or path.stem.startswith(f"{split}-"))
    ]
    return sorted(found)


def _matching(pattern: str) -> list[Path]:
    paths = [Path(pattern)] if Path(pattern).is_file() else []
    paths = paths or sorted(Path(name) for name in glob.glob(pattern, recursive=True))
    if not paths:
        raise ConfigError(f"no local data: {pattern}: no such file")
    return paths


def _read(path: Path, kind: str | None) -> datasets.Dataset:
    try:
        match kind or _SUFFIXES[path.suffix]:
            case "parquet":
                dataset = datasets.Dataset(pq.read_table(path))
            case "json":
                dataset = datasets.Dataset.from_list(_json_rows(path))
            case "csv":
                dataset = datasets.Dataset.from_list(_csv_rows(path))
            case _:
                lines = path.read_text(encoding="utf-8").splitlines()
                dataset = datasets.Dataset.from_list([{"text": line} for line in lines if line])
    except (OSError, UnicodeDecodeError, ValueError, csv.Error, pa.ArrowException) as error:
        raise ConfigError(f"{path}: cannot be read: {one_line(error)}") from error
    if not len(dataset):
        raise ConfigError(f"{path}: holds no items")
    return dataset


def _json_rows(path: Path) -> list[dict[str, Any]]:
    """A list of objects, or an object a line."""
    text = path.read_text(encoding="utf-8")
    if text.lstrip().startswith("["):
        return json.loads(text)
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from error
    return rows


def _csv_rows(path: Path) -> list[dict[str, Any]]:
    """Texts as they stand there; but a column of whole numbers is one of numbers, as for labels."""
    with path.open(encoding="utf-8", newline="") as file:
        rows: list[dict[str, Any]] = list(csv.DictReader(file, strict=True))
    for name in rows[0] if rows else ():
        try:
            numbers = [int(row[name]) for row in rows]
        except (TypeError, ValueError):
            continue
        if all(str(number) == row[name] for number, row in zip(numbers, rows, strict=True)):
            for number, row in zip(numbers, rows, strict=True):
                row[name] = number
    return rows
