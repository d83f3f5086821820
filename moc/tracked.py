"""What MLflow is told about a study, as plain values: tags, params, points, datasets."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from moc.config import StudyConfig, config_hash
from moc.journal import Record
from moc.ui import public_uri

MAX_PARAM_CHARS = 6000  # MLflow's limits
MAX_DIGEST_CHARS = 36
T = TypeVar("T")

PLANNED = ("parameters", "flops", "iso_flop", "steps")  # of plan.json, as params


class Point(NamedTuple):
    """One value of one metric; MLflow's step is the number of training tokens seen."""

    name: str
    value: float
    time: float  # Unix seconds
    tokens: int


class DatasetInfo(NamedTuple):
    phase: str
    name: str
    digest: str
    kind: str
    origin: str  # JSON


def parent_tags(study: StudyConfig) -> dict[str, str]:
    """Tags of the study's run; the note is the text at the head of its page."""
    note = [study.description] if study.description else []
    note.append(
        f"Arms {', '.join(study.arms)}; seeds {', '.join(map(str, study.seeds))}; "
        f"phases {', '.join(study.phases)}. The step axis counts training tokens."
    )
    if len(study.seeds) < 3:
        note.append("One seed supports no claim: a claim needs at least three.")
    return {
        "study": study.name,
        "git_commit": _git_commit(study),
        "config_hash": config_hash(study),
        "mlflow.note.content": "\n\n".join(note),
    }


def child_tags(study: StudyConfig, info: dict[str, Any]) -> dict[str, str]:
    """Tags of one arm and seed, from its run.json."""
    tags = {key: str(info[key]) for key in ("study", "arm", "seed", "scope", "config_hash")}
    tags |= {"causal": json.dumps(info["causal"]), "git_commit": _git_commit(study)}
    notes = []
    if not info["causal"]:
        notes.append(
            "Non-causal routing: chapters are chosen from the whole sequence, including later "
            "tokens."
        )
    memory = study.arms[info["arm"]].model.memory
    if memory is not None and memory.router.forced_uniform:
        notes.append("Benchmark routing: chapters are taken in turn, whatever the router says.")
    if notes:
        tags["mlflow.note.content"] = "\n\n".join(notes)
    return tags


def params(study: StudyConfig, arm: str, seed: int) -> dict[str, str]:
    """The arm's resolved config and what was planned for it, flattened with dots."""
    planned = read_json(study.dir / "plan.json").get("arms", {}).get(arm, {})
    tree = {
        **asdict(study.arms[arm]),
        "seed": seed,
        "data": {name: asdict(source) for name, source in study.data.items()},
        "tokenizer": asdict(study.tokenizer),
        "evals": asdict(study.evals),
        "trainer": asdict(study.trainer),
        "plan": {key: planned[key] for key in PLANNED if key in planned},
    }
    return {clean(key): value[:MAX_PARAM_CHARS] for key, value in _flatten(tree)}


def points(records: Sequence[Record]) -> Iterator[Point]:
    """Every value in a journal."""
    for record in records:
        for name, value in record.get("metrics", {}).items():
            yield Point(name, value, record["time"], record["tokens"])


def datasets(study: StudyConfig) -> list[DatasetInfo]:
    """From datasets.json, ``{phase: {source: fingerprint}}``; empty without it."""
    found = []
    for phase, sources in read_json(study.dir / "datasets.json").items():
        for name, fingerprint in sources.items():
            source = study.data[name]
            where = source.path or source.name or f"generated from seed {source.seed}"
            origin = json.dumps({"kind": source.kind, "uri": where})
            digest = fingerprint[:MAX_DIGEST_CHARS]
            found.append(DatasetInfo(phase, name, digest, source.kind, origin))
    return found


def chunks(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def clean(name: str) -> str:
    """``name`` with every character that MLflow does not take in a key replaced."""
    return re.sub(r"[^\w\-. :/]", "_", name)


def file_stamp(path: Path) -> str:
    """Changes when the file is written again."""
    stat = path.stat()
    return f"{stat.st_size}-{stat.st_mtime_ns}"


def one_line(error: Exception) -> str:
    """An error in at most 160 characters, without credentials."""
    text = " ".join(public_uri(str(error)).split())
    return f"{type(error).__name__}: {text}"[:160]


def read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.is_file() else {}


def _git_commit(study: StudyConfig) -> str:
    return str(read_json(study.dir / "environment.json").get("git_commit") or "unknown")


def _flatten(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value)
