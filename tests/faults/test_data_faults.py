"""Bad data: reported with its place, counted, and never half a cache."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from moc.config.data import SourceConfig, TokenizerConfig
from moc.config.schema import PhaseConfig, StudyConfig
from moc.data.cache import build_cache
from moc.data.module import StepDataset, prepare
from moc.data.source import documents
from moc.data.tokenizer import Tokenizer, build_tokenizer
from moc.data.windows import validation_windows
from moc.errors import CheckpointError, ConfigError

GOOD = b'{"text": "a good row"}\n'


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return build_tokenizer(study(tmp_path_factory.mktemp("cache"), SourceConfig(num_people=20)))


def study(cache_dir: Path, source: SourceConfig) -> StudyConfig:
    return StudyConfig(
        cache_dir=str(cache_dir),
        tokenizer=TokenizerConfig(vocab_size=400, training_bytes=20_000),
        data={"mine": source},
        phases={"pretrain": PhaseConfig(mixture={"mine": 1.0})},
    )


def text_source(path: Path, kind: str = "text") -> SourceConfig:
    return SourceConfig(kind=kind, path=str(path), validation_fraction=0)


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (b'{"text": null}', "null"),
        (b'{"text": "  "}', "empty"),
        (b"", "empty"),
        (b'{"text": 7}', "a int, not text"),
        (b'{"text": "\\ud800"}', "undecodable"),
        (b'{"text": "\xff\xfe"}', "undecodable"),
        (b'{"other": "x"}', "no key 'text'"),
        (b'["text"]', "a list, not an object"),
        (b'{"text": "cut of', "not JSON"),
        (b"[" * 100_000, "not JSON"),
    ],
)
def test_a_bad_row_is_skipped_counted_and_reported_with_its_line(
    tokenizer: Tokenizer, tmp_path: Path, caplog: pytest.LogCaptureFixture, row: bytes, problem: str
) -> None:
    """bad rows. Kept: the good ones; bad ones are skipped, counted and shown with their line."""
    path = tmp_path / "rows.jsonl"
    path.write_bytes(GOOD * 150 + row + b"\n" + GOOD * 50)
    with caplog.at_level(logging.WARNING):
        cache = build_cache(text_source(path), "train", tokenizer, tmp_path, 10**9)
    assert cache.manifest["num_documents"] == 200
    assert cache.manifest["num_rows"] == 201 and cache.manifest["num_skipped_rows"] == 1
    assert cache.manifest["skipped_examples"] == [f"{path}:151: {problem}"]
    assert f"skipped 1 of 201 rows: {path}:151: {problem}" in caplog.text


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        (None, "null"),
        ([], "empty"),
        ("hello", "messages is a str, not a list of role and content"),
        ([{"role": "user", "content": "hello"}], "no assistant message"),
        ([{"from": "user", "value": "hello"}], "a message without role and content"),
        ([{"role": "assistant", "content": None}], "content: null"),
        ([{"role": "assistant", "content": ""}], "content: empty"),
    ],
)
def test_bad_conversations(
    tokenizer: Tokenizer, tmp_path: Path, messages: object, problem: str
) -> None:
    good = json.dumps({"messages": [{"role": "assistant", "content": "yes"}]}) + "\n"
    path = tmp_path / "rows.jsonl"
    path.write_text(good * 199 + json.dumps({"messages": messages}) + "\n")
    cache = build_cache(text_source(path, "chat"), "train", tokenizer, tmp_path, 10**9)
    assert cache.manifest["skipped_examples"] == [f"{path}:200: {problem}"]


def test_bad_parquet_rows(tokenizer: Tokenizer, tmp_path: Path) -> None:
    invalid = pyarrow.array([b"\xff"]).view(pyarrow.string())
    values = pyarrow.concat_arrays([pyarrow.array(["good"] * 2200 + [None]), invalid])
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": values}), path)
    cache = build_cache(text_source(path), "train", tokenizer, tmp_path, 10**9)
    assert cache.manifest["num_documents"] == 2200
    assert cache.manifest["skipped_examples"] == [
        f"{path}: row 2201: null",
        f"{path}: row 2202: undecodable",
    ]


def test_an_undecodable_line_of_a_text_file_is_left_out(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("gut é\n".encode() * 120 + b"latin-1 \xe9\n" + b"good\n" * 80)
    cache = build_cache(text_source(path), "train", tokenizer, tmp_path, 10**9)
    assert cache.manifest["skipped_examples"] == [f"{path}:121: undecodable"]
    text = tokenizer.decode(cache.tokens.tolist())
    assert text == "gut é\n" * 120 + "good\n" * 80 + "<|endoftext|>"


@pytest.mark.parametrize(("num_bad", "stops"), [(1, False), (2, True)])
def test_more_than_one_percent_of_bad_rows_stops(
    tokenizer: Tokenizer, tmp_path: Path, num_bad: int, stops: bool
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"text": null}\n' * num_bad + GOOD * (100 - num_bad))
    if not stops:
        build_cache(text_source(path), "train", tokenizer, tmp_path, 10**9)
        return
    message = rf"2 of 100 rows cannot be used, more than 1% \({path}:1: null; {path}:2: null\); "
    with pytest.raises(ConfigError, match=message):
        build_cache(text_source(path), "train", tokenizer, tmp_path, 10**9)
    assert not list((tmp_path / "tokens").glob("text*/manifest.json"))


def test_an_endless_stream_of_bad_rows_is_not_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"txt": "wrong key"}\n' * 20_000)
    with pytest.raises(ConfigError, match=r"1000 of 1000 rows .* no key 'text'"):
        list(documents(text_source(path), "train"))


def test_a_missing_file_ends_in_one_line_with_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "shakespeare.txt").write_text("words")
    config = study(tmp_path, text_source(tmp_path / "data" / "shakespear.txt"))
    with pytest.raises(ConfigError, match=r"did you mean '.*/data/shakespeare.txt'") as caught:
        prepare(config, config.phases["pretrain"], tokenizer=None)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value) and str(caught.value).startswith("data.mine: path ")
    config = study(tmp_path, text_source(tmp_path / "dat" / "none.parquet"))
    with pytest.raises(ConfigError, match=r"no such file"):
        build_tokenizer(config)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"x", r"cannot read \.csv, only \.txt \.md \.jsonl \.parquet"),
        ("a.parquet", b"not parquet at all", "not readable as parquet"),
        ("a.txt", b" \n", "no documents in the train split"),
    ],
)
def test_unusable_files(
    tokenizer: Tokenizer, tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        build_cache(text_source(tmp_path / name), "train", tokenizer, tmp_path, 1000)


TEXT = "Er sagte: gut.\nUnd noch eine Zeile.\n" * 40


@pytest.mark.parametrize("suffix", ["txt", "md", "jsonl"])
@pytest.mark.parametrize(
    ("encoding", "named"),
    [
        ("utf-16", "is UTF-16"),
        ("utf-32", "is UTF-32"),
        ("utf-16-le", "has NUL bytes"),
        ("utf-16-be", "has NUL bytes"),
    ],
)
def test_another_encoding_is_refused(
    tokenizer: Tokenizer, tmp_path: Path, suffix: str, encoding: str, named: str
) -> None:
    """bad rows; malformed studies, overrides and data. Kept: no NUL is trained on; a line says how
    to convert the file."""
    path = tmp_path / f"a.{suffix}"
    content = f"{json.dumps({'text': TEXT})}\n" if suffix == "jsonl" else TEXT
    path.write_bytes(content.encode(encoding))
    with pytest.raises(ConfigError, match=named) as caught:
        build_cache(text_source(path), "train", tokenizer, tmp_path, 10**9)
    command = str(caught.value).partition("iconv -f ")[2]
    assert command.startswith(encoding.upper().replace("-LE", "LE").replace("-BE", "BE"))
    assert f"-t UTF-8 '{path}'" in command and "\n" not in str(caught.value)
    path.write_bytes(content.encode("utf-8-sig"))  # its byte order mark is no text
    cache = build_cache(text_source(path), "train", tokenizer, tmp_path, 10**9)
    assert cache.manifest["num_skipped_rows"] == 0
    assert tokenizer.decode(cache.tokens[:-1].tolist()) == TEXT


def test_a_nul_byte_further_on_is_a_bad_row(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"good\n" * 1500 + b"b\0ad\n" + b"good\n" * 10)
    cache = build_cache(text_source(path), "train", tokenizer, tmp_path, 10**9)
    assert cache.manifest["skipped_examples"] == [f"{path}:1501: undecodable"]


def test_a_wrong_column_names_the_nearest(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"texts": ["a"]}), path)
    with pytest.raises(ConfigError, match=r"no column 'text'; did you mean 'texts'"):
        build_cache(text_source(path), "train", tokenizer, tmp_path, 1000)


def test_no_validation_documents_names_the_remedy(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(GOOD)
    config = study(tmp_path, text_source(path))
    with pytest.raises(ConfigError, match=r"data.mine: no documents .* raise validation_fraction"):
        validation_windows(config, "mine", tokenizer, 32, 1000)


def test_a_source_shorter_than_one_sequence(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(GOOD)
    config = study(tmp_path, text_source(path))
    phase = config.phases["pretrain"]
    caches = prepare(config, phase, tokenizer)
    with pytest.raises(ConfigError, match=r"data.mine has only .* lower context_length 128"):
        StepDataset(phase, caches, seed=0, micro_batch=1)


@pytest.mark.parametrize("damage", ["flip", "truncate", "missing", "manifest", "no manifest"])
def test_a_damaged_cache_is_built_again(
    tokenizer: Tokenizer, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    config = SourceConfig(num_people=10)
    cache = build_cache(config, "train", tokenizer, tmp_path, 2000)
    good = cache.tokens.tolist()
    file = cache.folder / ("manifest.json" if "manifest" in damage else "tokens.bin")
    data = bytearray(file.read_bytes())
    match damage:
        case "flip":
            data[100] ^= 1
            file.write_bytes(data)
        case "truncate":
            file.write_bytes(data[:-2])
        case "manifest":
            file.write_bytes(data[: len(data) // 2])
        case _:
            file.unlink()
    with caplog.at_level(logging.WARNING):
        again = build_cache(config, "train", tokenizer, tmp_path, 2000)
    assert again.tokens.tolist() == good
    assert "damaged: building it again" in caplog.text


def test_a_large_cache_is_verified_where_it_is_read(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too large to be hashed when it is opened: block by block, each once in a process."""
    monkeypatch.setattr("moc.data.cache._FULL_CHECK_BYTES", 0)
    monkeypatch.setattr("moc.data.cache._BLOCK_BYTES", 256)  # 128 tokens
    config = SourceConfig(num_people=10)
    cache = build_cache(config, "train", tokenizer, tmp_path, 2000)
    file = cache.folder / "tokens.bin"
    data = bytearray(file.read_bytes())
    data[3 * 256] ^= 1
    file.write_bytes(data)
    again = build_cache(config, "train", tokenizer, tmp_path, 2000)  # the size is right
    assert (again.read(0, 384) == cache.tokens[:384]).all()
    for start, stop in ((384, 385), (383, 385), (500, 520), (0, 2000)):
        with pytest.raises(CheckpointError, match=r"after byte 768\); remove .* goes on"):
            again.read(start, stop)
    assert (again.read(512, 600) == cache.tokens[512:600]).all()
    assert again.read_mask(0, 5000).all()
    hashed = []
    monkeypatch.setattr("moc.data.cache._hash", lambda block: hashed.append(block))
    again.read(512, 600)
    assert not hashed  # it was sound the first time
    again.read_mask(0, 512)
    assert not hashed


def test_a_large_cache_of_the_wrong_size_is_built_again(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moc.data.cache._FULL_CHECK_BYTES", 0)
    config = SourceConfig(num_people=10)
    cache = build_cache(config, "train", tokenizer, tmp_path, 2000)
    good = cache.tokens.tolist()
    file = cache.folder / "tokens.bin"
    file.write_bytes(file.read_bytes()[:-2])
    assert build_cache(config, "train", tokenizer, tmp_path, 2000).tokens.tolist() == good


@pytest.mark.parametrize(
    "damage", ["half", "empty", "flip", "junk", "other", "missing", "no files"]
)
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_damaged_cached_tokenizer_is_trained_again(
    tmp_path: Path, name: str, damage: str
) -> None:
    """small damaged files. Kept: the tokenizer, trained again from the same text."""
    config = study(tmp_path, SourceConfig(num_people=10))
    before = build_tokenizer(config)
    (folder,) = (path for path in (tmp_path / "tokenizers").iterdir() if path.is_dir())
    content = (folder / name).read_bytes()
    flipped = bytearray(content)
    flipped[content.index(b"eos_token") if "config" in name else len(content) // 2] ^= 1
    spoiled = {
        "half": content[: len(content) // 2],
        "empty": b"",
        "flip": flipped,
        "junk": b"\xff\0",
        "other": content.replace(b"false", b"true", 1),  # is whole, and another tokenizer
    }
    if damage in spoiled:
        (folder / name).write_bytes(spoiled[damage])
    else:
        for path in [folder / name] if damage == "missing" else list(folder.iterdir()):
            path.unlink()
    after = build_tokenizer(config)
    assert after.fingerprint == before.fingerprint
    assert Tokenizer.saved(folder).fingerprint == before.fingerprint


def test_leftovers_of_a_killed_process_do_no_harm(tokenizer: Tokenizer, tmp_path: Path) -> None:
    config = SourceConfig(num_people=10)
    cache = build_cache(config, "train", tokenizer, tmp_path, 2000)
    good = cache.tokens.tolist()
    half = cache.folder.with_name(f"{cache.folder.name}.partial")
    shutil.move(cache.folder, half)  # as if killed just before the folder got its name
    (half / "tokens.bin").write_bytes(b"half")
    assert build_cache(config, "train", tokenizer, tmp_path, 2000).tokens.tolist() == good
    assert not half.exists()


def test_a_tokenizer_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        ConfigError, match=r"cannot be loaded: .* set it to null to train"
    ) as caught:
        Tokenizer.load(tmp_path / "nowhere")
    assert "\n" not in str(caught.value)


def test_a_hub_dataset_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")

    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("Couldn't reach\nthe hub")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    config = SourceConfig(kind="text", name="some/set")
    with pytest.raises(ConfigError, match=r"'some/set' .* Couldn't reach the hub; check the name"):
        list(documents(config, "train"))
