"""A source's documents, whatever its kind: the one entrance to the data."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any, Literal

from moc.config.data import SourceConfig
from moc.config.identity import config_hash
from moc.data.document import Document, chat_document, plain_document
from moc.data.facts import fact_documents
from moc.data.files import (
    BadRows,
    Row,
    file_rows,
    good_values,
    hub_rows,
    matching_files,
    messages_problem,
    text_file_pieces,
    text_problem,
)
from moc.data.hashing import stable_hash
from moc.data.records import record_documents
from moc.data.skills import skill_examples
from moc.errors import ConfigError

Split = Literal["train", "validation"]

# The fields of SourceConfig that decide what documents a generated source has.
_GENERATED_FIELDS = {
    "facts": (
        "seed",
        "num_people",
        "num_phrasings",
        "question_share",
        "documents",
    ),
    "records": (
        "seed",
        "num_records",
        "first_record",
        "version",
        "key_words",
        "num_attributes",
        "value_bits",
        "num_exposures",
    ),
    "skills": ("seed", "num_examples"),
}


def documents(
    config: SourceConfig, split: Split, bad_rows: BadRows | None = None
) -> Iterator[Document]:
    """One pass over a split of the source, streamed. Rows are counted in ``bad_rows``, whose
    ``finish`` the caller calls at the end: it judges and reports the skipped ones.

    Raises:
        ConfigError: if the source cannot be read as configured.
    """
    bad_rows = bad_rows or BadRows()
    if config.hold_out:
        held_out = split == "validation"
        whole = _documents(config, "train", bad_rows)
        return (d for i, d in enumerate(whole) if _is_left_out(config, i) == held_out)
    return _documents(config, split, bad_rows)


def _documents(config: SourceConfig, split: Split, bad_rows: BadRows) -> Iterator[Document]:
    match config.kind:
        case "facts":
            return fact_documents(config, split)
        case "records":
            return record_documents(config, split)
        case "skills":
            return (chat_document(item.messages) for item in skill_examples(config, split))
        case "text":
            return (plain_document(text) for text in _values(config, split, bad_rows))
        case "chat":
            return (chat_document(messages) for messages in _values(config, split, bad_rows))


def source_key(config: SourceConfig, split: Split) -> str:
    """Changes when the documents may have: with the settings, the files, or this package's code."""
    settings: dict[str, Any] = asdict(config)
    if fields := _GENERATED_FIELDS.get(config.kind):
        fields = (*fields, "hold_out") if config.hold_out else fields
        settings = {"kind": config.kind} | {name: settings[name] for name in fields}
    files = []
    if config.kind in ("text", "chat") and (pattern := _path_of(config, split)):
        for path in matching_files(pattern):
            files.append((str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns))
    return config_hash(settings, split, files, _code_digest())


def _values(config: SourceConfig, split: Split, bad_rows: BadRows) -> Iterator[Any]:
    """Texts or conversations of one split: read from a place of its own, or held out."""
    own_place = config.validation_path if config.path else config.validation_split
    if not 0 <= config.validation_fraction <= 0.5:
        raise ConfigError(
            f"validation_fraction must be from 0 to 0.5, not {config.validation_fraction}"
        )
    values = _read(config, split, bad_rows)
    if own_place:
        return values
    held_out = split == "validation"
    return (v for i, v in enumerate(values) if is_held_out(config, i) == held_out)


def is_held_out(config: SourceConfig, index: int) -> bool:
    """Whether document ``index`` of the source is for validation: one at random in every
    1 / validation_fraction documents, and always the first, so that there is one.
    """
    return _is_drawn(config.validation_fraction, index, config.seed, "held out")


def _is_left_out(config: SourceConfig, index: int) -> bool:
    """Whether training document ``index`` is kept for the choice of settings (``hold_out``)."""
    return _is_drawn(config.hold_out, index, config.seed, "left out")


def _is_drawn(share: float, index: int, *key: int | str) -> bool:
    if share == 0:
        return False
    period = round(1 / share)
    block, offset = divmod(index, period)
    return offset == (stable_hash(*key, block) % period if block else 0)


def _read(config: SourceConfig, split: Split, bad_rows: BadRows) -> Iterator[Any]:
    column = "messages" if config.kind == "chat" else config.column
    problem_of = messages_problem if config.kind == "chat" else text_problem
    if pattern := _path_of(config, split):
        for path in matching_files(pattern):
            if path.suffix in (".jsonl", ".parquet"):
                yield from good_values(file_rows(path, column), problem_of, bad_rows)
            elif config.kind == "chat":
                raise ConfigError(f"path '{path}': conversations are read from .jsonl and .parquet")
            else:
                yield from text_file_pieces(path, bad_rows)
    else:
        yield from good_values(_hub(config, split, column), problem_of, bad_rows)


def _hub(config: SourceConfig, split: Split, column: str) -> Iterator[Row]:
    if config.name is None:
        raise ConfigError(f"a {config.kind} source needs a path or the name of a hub dataset")
    name = config.validation_split if split == "validation" else config.split
    return hub_rows(config.name, config.subset, name or config.split, column)


def _path_of(config: SourceConfig, split: Split) -> str | None:
    own = config.validation_path if split == "validation" and config.path else None
    return own or config.path


@cache
def _code_digest() -> str:
    """Of this package's source: a change to a template or a reader makes old caches stale."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
