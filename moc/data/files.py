"""Rows of text from local files and hub datasets. Bad rows are skipped, counted and reported."""

from __future__ import annotations

import glob
import itertools
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from moc.config.secrets import public
from moc.errors import ConfigError, nearest

log = logging.getLogger(__name__)

_BYTE_ORDER_MARKS = {  # longest first: UTF-32's begins as UTF-16's
    b"\xff\xfe\0\0": "UTF-32",
    b"\0\0\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
_UTF8_MARK = b"\xef\xbb\xbf"
_HEAD_BYTES = 4096  # of a file, to see how it is encoded

SUFFIXES = (".txt", ".md", ".jsonl", ".parquet")
PIECE_BYTES = 16_384  # a longer .txt or .md file becomes documents of about this size
_MAX_BAD_SHARE = 0.01
_EARLY_BAD_ROWS = 1000  # so many bad rows need not wait for the end to be judged
_NUM_EXAMPLES = 5


class Row(NamedTuple):
    where: str  # file and line, for messages
    value: Any
    problem: str | None = None  # why the value could not even be read


class BadRows:
    """Counts rows, good and bad, and stops the run when too many are bad."""

    def __init__(self) -> None:
        self.num_rows = 0
        self.num_bad = 0
        self.examples: list[str] = []

    def count(self, row: Row, problem: str | None) -> None:
        self.num_rows += 1
        if problem is None:
            return
        self.num_bad += 1
        if len(self.examples) < _NUM_EXAMPLES:
            self.examples.append(public(f"{row.where}: {problem}"))
        if self.num_bad >= _EARLY_BAD_ROWS:
            self.check()

    def check(self) -> None:
        """Judge the rows so far.

        Raises:
            ConfigError: if more than 1% of them are bad; it says where and why.
        """
        if self.num_bad > _MAX_BAD_SHARE * self.num_rows:
            raise ConfigError(
                f"{self.num_bad} of {self.num_rows} rows cannot be used, more than "
                f"{_MAX_BAD_SHARE:.0%} ({'; '.join(self.examples)}); "
                "repair the data, or choose another path or column"
            )

    def finish(self) -> None:
        """Judge all rows and report the skipped ones in the log."""
        self.check()
        if self.num_bad:
            examples = "; ".join(self.examples)
            log.warning("skipped %d of %d rows: %s", self.num_bad, self.num_rows, examples)


def good_values(
    rows: Iterator[Row], problem_of: Callable[[Any], str | None], bad_rows: BadRows
) -> Iterator[Any]:
    """The values of the rows that ``problem_of`` has nothing to say about."""
    for row in rows:
        problem = row.problem or problem_of(row.value)
        bad_rows.count(row, problem)
        if problem is None:
            yield row.value


def text_problem(value: Any) -> str | None:
    """Why ``value`` is no text, or None."""
    if value is None:
        return "null"
    if not isinstance(value, str):
        return f"a {type(value).__name__}, not text"
    if not value.strip():
        return "empty"
    try:
        value.encode()  # JSON may hold half a surrogate pair, which is no Unicode text
    except UnicodeEncodeError:
        return "undecodable"
    return None


def messages_problem(value: Any) -> str | None:
    """Why ``value`` is no conversation with an answer to learn from, or None."""
    if value is None:
        return "null"
    if not isinstance(value, list):
        return f"messages is a {type(value).__name__}, not a list of role and content"
    if not value:
        return "empty"
    for message in value:
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            return "a message without role and content"
        for key in ("role", "content"):
            if problem := text_problem(message[key]):
                return f"{key}: {problem}"
    if all(message["role"] != "assistant" for message in value):
        return "no assistant message"
    return None


def matching_files(pattern: str) -> list[Path]:
    """The files that a path or glob names, sorted.

    Raises:
        ConfigError: if there is none, with the nearest that exists; or if one has a suffix that
            cannot be read.
    """
    paths = [Path(pattern)] if Path(pattern).is_file() else []
    paths = paths or sorted(Path(name) for name in glob.glob(pattern, recursive=True))
    paths = [path for path in paths if path.is_file()]
    if not paths:
        raise ConfigError(f"path {pattern!r}: no such file; {_nearest_file(Path(pattern))}")
    for path in paths:
        if path.suffix not in SUFFIXES:
            raise ConfigError(
                f"path '{path}': cannot read {path.suffix}, only {' '.join(SUFFIXES)}"
            )
    return paths


def file_rows(path: Path, column: str) -> Iterator[Row]:
    """The rows of a .jsonl or .parquet file.

    Raises:
        ConfigError: if the file is not what its name says or lacks the column.
    """
    return _json_rows(path, column) if path.suffix == ".jsonl" else _parquet_rows(path, column)


def text_file_pieces(path: Path, bad_rows: BadRows) -> Iterator[str]:
    """A .txt or .md file in pieces of about ``PIECE_BYTES``, cut at a blank line where there is
    one. A row is a line here: lines that are not UTF-8 are left out.

    Raises:
        ConfigError: if the file is in another encoding.
    """
    lines: list[str] = []
    size = 0
    with _open_utf8(path) as file:
        for number, line in enumerate(file, 1):
            try:
                lines.append(_text_line(line))
            except UnicodeDecodeError:
                bad_rows.count(Row(f"{path}:{number}", line), "undecodable")
                continue
            bad_rows.count(Row(f"{path}:{number}", line), None)
            size += len(line)
            if (size >= PIECE_BYTES and not line.strip()) or size >= 2 * PIECE_BYTES:
                yield "".join(lines)
                lines, size = [], 0
    if "".join(lines).strip():
        yield "".join(lines)


def hub_rows(name: str, subset: str | None, split: str, column: str) -> Iterator[Row]:
    """The rows of a Hugging Face dataset, streamed.

    Raises:
        ConfigError: if it cannot be had or lacks the column.
    """
    import datasets

    try:
        dataset = datasets.load_dataset(name, subset, split=split, streaming=True)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"dataset {name!r} (subset {subset}, split {split}) cannot be loaded: {reason}; "
            "check the name and the network, or set path to a local file"
        ) from error
    if dataset.column_names and column not in dataset.column_names:
        raise ConfigError(_no_column(f"dataset {name!r}", column, list(dataset.column_names)))
    for number, row in enumerate(dataset, 1):
        yield Row(f"{name} ({split}) row {number}", row.get(column))


def _open_utf8(path: Path) -> BinaryIO:
    """``path``, behind its byte order mark if it has one.

    Raises:
        ConfigError: if its first bytes are not UTF-8, with the command that makes it so.
    """
    file = path.open("rb")
    head = file.read(_HEAD_BYTES)
    mark = next((mark for mark in _BYTE_ORDER_MARKS if head.startswith(mark)), None)
    if mark is None and b"\0" not in head:
        file.seek(len(_UTF8_MARK) if head.startswith(_UTF8_MARK) else 0)
        return file
    file.close()
    if mark is not None:
        found, encoding = f"is {_BYTE_ORDER_MARKS[mark]}", _BYTE_ORDER_MARKS[mark]
    else:  # the high bytes of Latin letters: the second of each two, or the first
        low = head[1::2].count(0) >= head[::2].count(0)
        found, encoding = "has NUL bytes", "UTF-16LE" if low else "UTF-16BE"
    raise ConfigError(
        f"path '{path}' {found}, and only UTF-8 is read; if it is text, convert it: iconv -f "
        f"{encoding} -t UTF-8 '{path}' > utf8{path.suffix}"
    )


def _text_line(line: bytes) -> str:
    """
    Raises:
        UnicodeDecodeError: if it is no UTF-8 text.
    """
    if (at := line.find(0)) >= 0:
        raise UnicodeDecodeError("utf-8", line, at, at + 1, "a NUL byte")
    return line.decode()


def _json_rows(path: Path, column: str) -> Iterator[Row]:
    with _open_utf8(path) as file:
        for number, line in enumerate(file, 1):
            where = f"{path}:{number}"
            try:
                record = json.loads(_text_line(line))
            except UnicodeDecodeError:
                yield Row(where, None, "undecodable")
            except (ValueError, RecursionError):  # also numbers too long and nesting too deep
                yield Row(where, None, "not JSON" if line.strip() else "empty")
            else:
                if not isinstance(record, dict):
                    yield Row(where, None, f"a {type(record).__name__}, not an object")
                elif column not in record:
                    yield Row(where, None, f"no key {column!r}")
                else:
                    yield Row(where, record[column])


def _parquet_rows(path: Path, column: str) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            if column not in file.schema_arrow.names:
                raise ConfigError(_no_column(f"path '{path}'", column, file.schema_arrow.names))
            number = itertools.count(1)
            for batch in file.iter_batches(batch_size=1000, columns=[column]):
                for scalar in batch.column(0):
                    yield _parquet_row(f"{path}: row {next(number)}", scalar)
    except (pyarrow.ArrowInvalid, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"path '{path}': not readable as parquet: {reason}") from error


def _parquet_row(where: str, scalar: Any) -> Row:
    try:
        return Row(where, scalar.as_py())
    except UnicodeDecodeError:
        return Row(where, None, "undecodable")


def _no_column(where: str, column: str, columns: list[str]) -> str:
    return f"{where}: no column {column!r}; {nearest(column, columns)}"


def _nearest_file(path: Path) -> str:
    """A suggestion among the readable files in, or just below, the nearest folder that exists."""
    folder = next((parent for parent in path.parents if parent.is_dir()), Path("."))
    near = itertools.islice(itertools.chain(folder.glob("*"), folder.glob("*/*")), 5000)
    return nearest(str(path), sorted(str(file) for file in near if file.suffix in SUFFIXES))
