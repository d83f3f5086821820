"""Documents from files and hub datasets: what is read, how it is split, and the chat template."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from moc.config.data import SourceConfig
from moc.data.document import Piece, chat_document, document_text
from moc.data.files import PIECE_BYTES, BadRows
from moc.data.source import documents, source_key
from moc.errors import ConfigError


def write_jsonl(path: Path, rows: list[object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_parquet(path: Path, column: str, values: list[object]) -> Path:
    pyarrow.parquet.write_table(pyarrow.table({column: values}), path)
    return path


def read(config: SourceConfig, split: str = "train") -> list[str]:
    return [document_text(document) for document in documents(config, split)]


def test_chat_template_by_hand() -> None:
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]
    assert chat_document(messages) == [
        Piece("<|im_start|>", False, True),
        Piece("user\n", False, False),
        Piece("Hi", False, False),
        Piece("<|im_end|>", False, True),
        Piece("\n", False, False),
        Piece("<|im_start|>", False, True),
        Piece("assistant\n", False, False),
        Piece("Yo", True, False),
        Piece("<|im_end|>", True, True),
        Piece("\n", False, False),
    ]


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_rows_become_documents(tmp_path: Path, suffix: str) -> None:
    texts = [f"text number {i} é" for i in range(2500)]
    path = tmp_path / f"a.{suffix}"
    if suffix == "jsonl":
        write_jsonl(path, [{"body": text} for text in texts])
    else:
        write_parquet(path, "body", texts)
    config = SourceConfig(kind="text", path=str(path), column="body", validation_fraction=0)
    assert read(config) == texts


def test_chats_are_read_from_parquet_and_jsonl(tmp_path: Path) -> None:
    chats = [
        [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": f"a{i}"}]
        for i in range(5)
    ]
    write_jsonl(tmp_path / "a.jsonl", [{"messages": chat, "other": 1} for chat in chats[:2]])
    write_parquet(tmp_path / "b.parquet", "messages", chats[2:])
    config = SourceConfig(kind="chat", path=str(tmp_path / "*"), validation_fraction=0)
    assert list(documents(config, "train")) == [chat_document(chat) for chat in chats]


def test_a_small_text_file_is_one_document(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("one\n\ntwo\n")
    (tmp_path / "b.txt").write_text("three")
    config = SourceConfig(kind="text", path=str(tmp_path / "*.*"), validation_fraction=0)
    assert read(config) == ["one\n\ntwo\n", "three"]


def test_a_large_text_file_is_cut_at_blank_lines_and_nothing_is_lost(tmp_path: Path) -> None:
    paragraph = "word " * 100 + "\n"
    (tmp_path / "a.txt").write_text((paragraph * 3 + "\n") * 100 + "no blank line\n" * 10_000)
    config = SourceConfig(kind="text", path=str(tmp_path / "a.txt"), validation_fraction=0)
    pieces = read(config)
    assert "".join(pieces) == (tmp_path / "a.txt").read_text()
    assert len(pieces) > 10 and max(map(len, pieces)) <= 2 * PIECE_BYTES + 600
    assert pieces[0].endswith("\n\n")


def test_globs_are_sorted_and_recursive(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("b.txt", "a.txt", "sub/c.txt"):
        (tmp_path / name).write_text(name)
    config = SourceConfig(kind="text", path=str(tmp_path / "**/*.txt"), validation_fraction=0)
    assert read(config) == ["a.txt", "b.txt", "sub/c.txt"]


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.5])
def test_held_out_documents_are_a_fixed_share_and_never_trained(
    tmp_path: Path, fraction: float
) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": str(i)} for i in range(1000)])
    config = SourceConfig(kind="text", path=str(path), validation_fraction=fraction)
    train, validation = read(config), read(config, "validation")
    assert sorted(train + validation, key=int) == [str(i) for i in range(1000)]
    assert len(validation) == 1000 * fraction
    other = SourceConfig(kind="text", path=str(path), validation_fraction=fraction, seed=1)
    assert read(other, "validation") != validation
    assert read(config, "validation") == validation


def test_two_documents_are_enough_to_hold_one_out(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "a"}, {"text": "b"}])
    config = SourceConfig(kind="text", path=str(path))
    assert read(config, "validation") == ["a"] and read(config) == ["b"]


def test_a_validation_path_of_its_own_leaves_training_whole(tmp_path: Path) -> None:
    train = write_jsonl(tmp_path / "a.jsonl", [{"text": "a"}, {"text": "b"}])
    other = write_jsonl(tmp_path / "v.jsonl", [{"text": "v"}])
    config = SourceConfig(kind="text", path=str(train), validation_path=str(other))
    assert read(config) == ["a", "b"] and read(config, "validation") == ["v"]


def test_files_are_streamed(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "good"}] * 10 + ["bad"] * 10)
    bad_rows = BadRows()
    config = SourceConfig(kind="text", path=str(path), validation_fraction=0)
    stream: Iterator[object] = iter(documents(config, "train", bad_rows))
    for _ in range(5):
        next(stream)
    assert bad_rows.num_rows == 5 and bad_rows.num_bad == 0


def test_a_hub_dataset_is_streamed_and_held_out(tmp_path: Path) -> None:
    """A local folder stands for the hub: `datasets` loads both through the same call."""
    pytest.importorskip("datasets")
    write_jsonl(tmp_path / "train.jsonl", [{"text": f"row {i}"} for i in range(20)])
    config = SourceConfig(kind="text", name=str(tmp_path), validation_fraction=0.5)
    train, validation = read(config), read(config, "validation")
    assert len(train) == len(validation) == 10
    assert set(train + validation) == {f"row {i}" for i in range(20)}
    with pytest.raises(ConfigError, match="no column 'txt'; did you mean 'text'"):
        read(SourceConfig(kind="text", name=str(tmp_path), column="txt"))


def test_a_source_without_a_place_is_an_error() -> None:
    with pytest.raises(ConfigError, match="needs a path or the name"):
        read(SourceConfig(kind="text"))


def test_the_key_follows_settings_and_files(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "a"}])
    config = SourceConfig(kind="text", path=str(path))
    before = source_key(config, "train")
    assert source_key(config, "train") == before != source_key(config, "validation")
    path.write_text(path.read_text() * 2)
    assert source_key(config, "train") != before
    facts = SourceConfig()
    assert source_key(facts, "train") == source_key(SourceConfig(column="other"), "train")
    assert source_key(facts, "train") != source_key(SourceConfig(num_people=2), "train")


def test_real_data() -> None:
    folder = os.environ.get("MOC_TEST_DATA")
    if not folder:
        pytest.skip("MOC_TEST_DATA is not set")
    text = SourceConfig(kind="text", path=f"{folder}/text/wikitext2_*.txt")
    pieces = read(text) + read(text, "validation")
    files = sorted(Path(folder).glob("text/wikitext2_*.txt"))
    assert sum(map(len, pieces)) == sum(len(f.read_bytes().decode()) for f in files)
    chat = SourceConfig(
        kind="chat",
        path=f"{folder}/chat/qa_train.parquet",
        validation_path=f"{folder}/chat/qa_validation.parquet",
    )
    assert len(read(chat)) == 17_254 and len(read(chat, "validation")) == 500
