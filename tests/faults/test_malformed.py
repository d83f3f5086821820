"""Malformed studies, overrides and data, made from the schema and from what is shipped: each ends
in one line, and writes nothing."""

from __future__ import annotations

import copy
import json
import math
import random
import types
import typing
from collections.abc import Iterator
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import yaml

import moc.config.load
import moc.study
from moc.cli import main
from moc.config.load import load_study
from moc.config.schema import StudyConfig
from moc.ranges import Range
from tests.support.child_tasks import NoTracker
from tests.support.helpers_training import TINY_STUDY

ROOT = Path(__file__).parents[2]
SHIPPED = sorted((ROOT / "experiments").rglob("*.yaml"))
ENTRIES = {"arms": "moc", "phases": "facts", "data": "people", "probes": "again", "ladder": "s"}
MANY = 10**400
Key = tuple[str, ...]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for what is malformed; the working folder is another one, and empty."""
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    return tmp_path


def is_refused(argv: list[str], capsys: pytest.CaptureFixture[str], *, plans: bool = False) -> bool:
    """Whether ``moc ARGV`` says one line and ends with 2; not, if there is nothing to refuse.

    ``plans``: it may show the plan before that.
    """
    try:
        code: Any = main(argv)
    except SystemExit as error:
        code = error.code
    except BaseException as error:
        raise AssertionError(f"a traceback of {short(argv)}") from error
    out, err = capsys.readouterr()
    if code == 0:
        return False
    assert code == 2 and (plans or out == ""), f"{code} {short(argv)} {err[:300]}"
    assert err.startswith("moc: ") and err.count("\n") == 1 and len(err.splitlines()) == 1, err
    assert len(err) < 2000, short(argv)
    assert not list(Path.cwd().iterdir()), f"{short(argv)} has written something"
    return True


def tiny(place: Path) -> dict[str, Any]:
    study = yaml.safe_load(TINY_STUDY.format(folder=place / "never"))
    del study["arms"]["backbone"]
    return study


def short(argv: list[str]) -> str:
    return " ".join(word[:120] for word in argv)


# from the schema


def fields_of(schema: Any, at: Key = ()) -> Iterator[tuple[Key, Any]]:
    """Every setting with its type; of what has a name, one entry."""
    for name, hint in typing.get_type_hints(schema, include_extras=True).items():
        inner, key = not_none(hint), (*at, name)
        if typing.get_origin(inner) is dict and is_dataclass(typing.get_args(inner)[1]):
            inner, key = typing.get_args(inner)[1], (*key, ENTRIES[name])
        if is_dataclass(inner):
            yield key, inner
            yield from fields_of(inner, key)
        else:
            yield key, hint


def not_none(hint: Any) -> Any:
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return next(one for one in typing.get_args(hint) if one is not type(None))
    return hint


def malformed(hint: Any) -> list[Any]:
    """Values that a setting of this type cannot have."""
    if is_dataclass(hint):
        return [7, [1], "words", {"no_such_key": 1}, {"_instantiator": "os.system"}]
    limits = None
    if typing.get_origin(hint) is typing.Annotated:
        hint, limits = typing.get_args(hint)
    hint = not_none(hint)
    if typing.get_origin(hint) is list:
        one = typing.get_args(hint)[0]
        return [
            {"a": 1},
            [[1]],
            *([value] for value in (malformed_numbers(limits) if one is int else [])),
        ]
    if typing.get_origin(hint) is dict:
        numbers = malformed_numbers(limits) if limits else []  # else: axes, of any values
        return [7, "words", [1], *({"people": value} for value in numbers)]
    if limits is not None:
        return [*malformed_numbers(limits), "words", {"a": 1}, [1, [2]], "${nowhere}"]
    if typing.get_origin(hint) is typing.Literal:
        return ["nonsense", [1], {"a": 1}]
    if hint is bool:
        return ["perhaps", [1], {"a": 1}]
    return [{"a": 1}, [1], "NUL \0", "${nowhere.at.all}", "${oc.env:NOT_SET_ANYWHERE}"]


def malformed_numbers(limits: Range) -> list[Any]:
    return [math.nan, math.inf, -math.inf, MANY, -MANY, limits.low - 1, limits.high * 2 + 1]


def laid_over(study: dict[str, Any], key: Key, value: Any) -> dict[str, Any]:
    study = here = copy.deepcopy(study)
    for part in key[:-1]:
        if not isinstance(here.get(part), dict):
            here[part] = {}
        here = here[part]
    here[key[-1]] = value
    return study


def of_the_schema() -> list[tuple[Key, Any]]:
    return [(key, value) for key, hint in fields_of(StudyConfig) for value in malformed(hint)]


def test_settings_that_cannot_be(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """malformed studies, overrides and data. Kept: every one of 300 and more ends in one line and
    exit code 2, and nothing is written."""
    path = place / "study.yaml"
    cases = of_the_schema()
    assert len(cases) > 600
    for key, value in random.Random(0).sample(cases, 180):
        path.write_text(yaml.safe_dump(laid_over(tiny(place), key, value), allow_unicode=True))
        assert is_refused(["plan", str(path)], capsys), (key, str(value)[:100])


def test_overrides_that_cannot_be(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = place / "study.yaml"
    path.write_text(yaml.safe_dump(tiny(place)))
    words = [".".join(key) + f"={value}" for key, value in of_the_schema() if plain(value)]
    cases = [*random.Random(1).sample(words, 25), *ODD_OVERRIDES]
    for word in cases:
        assert is_refused(["plan", str(path), word], capsys), word[:100]


def plain(value: Any) -> bool:
    """Whether it is the same on the command line as in a file."""
    return isinstance(value, (int, float)) or (isinstance(value, str) and "\0" not in value)


ODD_OVERRIDES = [
    "=",
    "=1",
    ".=1",
    "model..dim=3",
    "phases.=1",
    "phases..tokens=1",
    "seeds=[[1],[2]]",
    "seeds={a: 1}",
    "seeds[9]=1",
    "seeds.0=1",
    "[0]=1",
    "a[=1",
    "]=2",
    "model.dim=[",
    "model.dim={",
    "model.dim=!!python/object/apply:os.system [ls]",
    "model.dim=${model.dim}",
    "model.dim=" + "1" * 5000,
    "model.dim=0x" + "f" * 5000,
    "trainer.devices=" + "[" * 40_000,
    "description=" + "{a: " * 500,
    "name=" + "x" * 300,
    "name=",
    "name=../up",
    "name=/tmp",
    "phases.facts.mixture=[1]",
    "phases.facts.mixture={people: .nan}",
    "phases.facts=7",
    "arms.moc=[]",
    "data.people=text",
    "evals.controls.knockouts=[top-0]",
    "evals.controls.bank_swap={a: {b: 1}}",
    "model.memory.layers=every ²",
    "model.memory.layers=" + "9" * 5000,
]


# from what is shipped


def spoiled(text: str, draw: random.Random) -> bytes:
    """The text of a study with one mistake that a hand or a disk makes."""
    lines = text.splitlines()
    keys = [n for n, line in enumerate(lines) if ":" in line and not line.strip().startswith("#")]
    at = draw.choice(keys)
    key, colon, rest = lines[at].partition(":")
    match draw.randrange(9):
        case 0:
            return text.encode("utf-16")
        case 1:
            lines[at] = f"{key}x{colon}{rest}"
        case 2:
            lines.insert(at, "\t" + lines[at])
        case 3:
            lines[at] = f"{key}{colon}{rest} ]"
        case 4:
            lines.insert(at, lines[at])
        case 5:
            lines[at] = f"{key}{colon} [{{"
        case 6:
            return text.encode()[: draw.randrange(len(text))] + b"\xff\xfe\x00"
        case 7:
            lines[at] = key
        case _:
            lines[at] = lines[at][1:] if lines[at].startswith(" ") else f" {lines[at]}"
    return "\n".join(lines).encode()


def test_shipped_studies_with_a_mistake(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw, counted = random.Random(2), 0
    for number in range(50):
        path = place / f"{number}.yaml"
        path.write_bytes(spoiled(draw.choice(SHIPPED).read_text(), draw))
        counted += is_refused(["plan", str(path)], capsys)
    assert counted >= 40, "most of them cannot be read"


# data


def parquet(folder: Path) -> bytes:
    path = folder / "whole.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": ["some words to keep"] * 300}), path)
    return path.read_bytes()


def malformed_files(folder: Path) -> dict[str, bytes]:
    draw, whole = random.Random(3), parquet(folder)
    rows = json.dumps({"text": "some words to keep"}).encode() + b"\n"
    flipped = bytearray(rows * 100)
    for at in range(0, len(flipped), 9):
        flipped[at] ^= 0xFF
    text = "some words\n" * 100
    return {
        "empty.jsonl": b"",
        "blank.txt": b" \n\n ",
        "cut-rows.jsonl": b"".join(
            rows[: draw.randrange(len(rows) - 2)] + b"\n" for _ in range(99)
        ),
        "flipped.jsonl": bytes(flipped),
        "noise.jsonl": draw.randbytes(20_000),
        "utf-16.jsonl": (rows * 100).decode().encode("utf-16"),
        "nul.jsonl": b"\0" * 5000,
        "deep.jsonl": (b"[" * 100_000 + b"\n") * 2,
        "deep-text.jsonl": (b'{"text": ' + b"[" * 100_000 + b"\n") * 2,
        "huge-number.jsonl": (b'{"text": ' + b"9" * 100_000 + b"}\n") * 3,
        "exponent.jsonl": b'{"text": 1e999999}\n' * 3,
        "not-a-number.jsonl": b'{"text": NaN}\n' * 3,
        "array.jsonl": json.dumps([{"text": "words"}] * 9).encode(),
        "other-key.jsonl": b'{"txt": "words"}\n' * 100,
        "objects.jsonl": b'{"text": {"text": "words"}}\n' * 100,
        "one-huge-row.jsonl": b'{"text": "' + b"x" * 50_000_000,
        "surrogates.jsonl": b'{"text": "\\ud800"}\n' * 100,
        "cut.parquet": whole[: len(whole) // 2],
        "no-end.parquet": whole[:-8],
        "no-begin.parquet": whole[8:],
        "noise.parquet": b"PAR1" + draw.randbytes(5000) + b"PAR1",
        "text.parquet": text.encode(),
        "zeros.parquet": b"\0" * 5000,
        "latin-1.txt": ("n\u00e9e\n" * 100).encode("latin-1"),
        "noise.txt": b"\xff\xfe\xfd\n" * 1000,
        "a.csv": b"text\nwords\n",
        "a.json": b'{"text": "words"}',
        "a.gz": b"\x1f\x8b" + draw.randbytes(100),
    }


def test_data_that_cannot_be_read(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through ``moc run``; what it read without complaint would be trained on."""
    monkeypatch.setattr(moc.study, "Tracker", NoTracker)
    monkeypatch.setattr(moc.study, "measure_matmul_peak", lambda *_: 1e9)
    raw = tiny(place) | {"cache_dir": str(place / "cache")}
    raw["evals"]["tasks"] = []
    source = {"kind": "text", "path": str(place / "words.txt")}
    path = place / "study.yaml"
    path.write_text(yaml.safe_dump(raw | {"data": {"people": source, "skills": source}}))
    study = load_study(path)
    # reading it takes longer than all that follows
    monkeypatch.setattr(moc.config.load, "load_study", lambda *_, **__: copy.deepcopy(study))
    for name, content in malformed_files(place).items():
        (place / name).write_bytes(content)
        for one in study.data.values():
            one.path = str(place / name)
        assert is_refused(["run", str(path)], capsys, plans=True), name
    assert not (place / "never").exists()
