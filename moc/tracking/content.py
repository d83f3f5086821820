"""What MLflow is told about a study, as plain values: tags, params, points, datasets."""

from __future__ import annotations

import json
import logging
import re
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from moc.config.identity import config_hash
from moc.config.schema import StudyConfig
from moc.config.secrets import public
from moc.config.tuned import read_tuned
from moc.plan.bank_optimizer import bank_optimizer
from moc.store.files import read_sound_json, write_json
from moc.store.journal import Record
from moc.store.rundir import SUMMARY_TEXT, SUMMARY_VALUES, StudyDir

MAX_PARAM_CHARS = 6000  # MLflow's limits
MAX_DIGEST_CHARS = 36
MAX_TAG_CHARS = 8000
T = TypeVar("T")

log = logging.getLogger(__name__)

CURSOR_FILE = "tracking.json"
CHILD_FILES = (  # results and samples, and which rows every layer read
    "boundaries/*/evals.json",
    "boundaries/*/samples/**/*.jsonl",
    "probes/**/*.json",
    "memory_use.jsonl",
    "revivals.jsonl",
)
NOTE_TAG = "mlflow.note.content"  # MLflow's name for a run's description, in Markdown
PLANNED = ("parameters", "flops", "iso_flop", "steps")  # of plan.json, as params


@dataclass
class Cursor:
    """What MLflow has accepted of one folder; a file beside what it speaks of."""

    uuid: str
    run_id: str = ""
    records: int = 0  # of the journal
    last: str = ""  # digest of the last of them
    stamps: dict[str, str] = field(default_factory=dict)  # of whatever is sent whole

    @classmethod
    def load(cls, folder: Path, run_uuid: str = "") -> Cursor:
        """That of ``folder``; a new one if there is none, it is damaged, or that of another run."""
        saved = _undamaged(folder / CURSOR_FILE)
        if not saved or run_uuid not in ("", saved["uuid"]):
            saved = {"uuid": run_uuid or uuid.uuid4().hex}
        return cls(**saved)

    def is_complete(self) -> bool:
        """Whether a pass has once come to its end; what it sends last is the status."""
        return "status" in self.stamps

    def save(self, folder: Path) -> None:
        write_json(folder / CURSOR_FILE, asdict(self))


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
    return {
        "study": study.name,
        "level": "study",
        "git_commit": _git_commit(study),
        "config_hash": config_hash(study),
        **_tuning(study),
    }


def _tuning(study: StudyConfig) -> dict[str, str]:
    """The experiment with the trials by which the arms were tuned, if they were."""
    path = StudyDir(study.dir).tuning
    return {"tuning": read_tuned(path)["trials"]} if path.is_file() else {}


def description(study: StudyConfig) -> str:
    """The Markdown at the head of the study's page: what its report says in short, once there is
    one."""
    summary = StudyDir(study.dir).report / SUMMARY_TEXT
    if summary.is_file():
        return summary.read_text()[:MAX_TAG_CHARS]
    note = [study.description] if study.description else []
    note.append(
        f"Arms {', '.join(study.arms)}; seeds {', '.join(map(str, study.seeds))}; "
        f"phases {', '.join(study.phases)}. The step axis counts training tokens."
    )
    return "\n\n".join([*note, "Results follow when all runs are complete."])


def summary_points(study: StudyConfig) -> list[Point]:
    """The figures of the report's summary, at the end of the last phase."""
    path = StudyDir(study.dir).report / SUMMARY_VALUES
    tokens = sum(phase.num_steps() * phase.tokens_per_step for phase in study.phases.values())
    time = path.stat().st_mtime if path.is_file() else 0.0
    return [Point(name, value, time, tokens) for name, value in read_sound_json(path).items()]


def child_tags(study: StudyConfig, info: dict[str, Any]) -> dict[str, str]:
    """Tags of one arm and seed, from its run.json."""
    tags = {key: str(info[key]) for key in ("study", "arm", "seed", "kind", "scope", "config_hash")}
    tags["bank_optimizer"] = bank_optimizer(asdict(study.arms[info["arm"]]))
    tags |= {"level": "run", "causal": json.dumps(info["causal"]), "git_commit": _git_commit(study)}
    if info["status"] == "pruned":  # a trial of moc tune
        tags["pruned"] = str(info["why"])
    notes = []
    if not info["causal"]:
        notes.append(
            "Non-causal routing: rows are chosen from the whole sequence, including later tokens."
        )
    if "lazy" in tags["bank_optimizer"]:
        notes.append(
            "Lazy bank optimizer: AdamW updates a row in the steps that read it, and leaves it "
            "alone in the others."
        )
    if notes:
        tags[NOTE_TAG] = "\n\n".join(notes)
    return tags


def run_infos(study: StudyConfig) -> dict[tuple[str, int], dict[str, Any]]:
    """Every run.json by arm and seed; empty for what has not started."""
    return {
        (arm, seed): read_sound_json(StudyDir(study.dir).run(arm, seed).info)
        for arm in study.arms
        for seed in study.seeds
    }


def started(infos: Iterable[dict[str, Any]]) -> float:
    """Unix time at which the first of these runs began; now, if none has."""
    known = [datetime.fromisoformat(info["started"]).timestamp() for info in infos if info]
    return min(known, default=time.time())


def params(study: StudyConfig, info: dict[str, Any]) -> dict[str, str]:
    """What runs are grouped by, the arm's resolved config and what was planned for it, flattened
    with dots. ``info`` is the run's run.json."""
    arm = info["arm"]
    planned = read_sound_json(StudyDir(study.dir).plan).get("arms", {}).get(arm, {})
    tree = {
        **{key: info[key] for key in ("arm", "seed", "kind", "scope", "causal")},
        **asdict(study.arms[arm]),
        "data": {name: asdict(source) for name, source in study.data.items()},
        "tokenizer": asdict(study.tokenizer),
        "evals": asdict(study.evals),
        "trainer": {**asdict(study.trainer), "pause_at": None},  # it moves on
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
    for phase, sources in read_sound_json(StudyDir(study.dir).datasets).items():
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
    """An error in at most 160 characters, without secrets and the text of SQL statements."""
    said = re.sub(r"^\(raised as a result of [^)]*\)", "", public(str(error)))
    said = re.split(r"\[SQL: |\(Background on this error", said)[0]
    return f"{type(error).__name__}: {' '.join(said.split())}"[:160]


def _undamaged(path: Path) -> dict[str, Any]:
    """What a cursor's file says; empty without one, or if it is not what was written."""
    saved = read_sound_json(path)
    if saved.keys() <= Cursor.__dataclass_fields__.keys() and (saved or not path.is_file()):
        return saved
    log.warning("%s is damaged: all is sent again, and MLflow keeps it once", path)
    return {}


def _git_commit(study: StudyConfig) -> str:
    return str(read_sound_json(StudyDir(study.dir).environment).get("git_commit") or "unknown")


def _flatten(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value)
