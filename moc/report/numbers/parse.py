"""The keys of a study's files, turned into typed records: the only place that knows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from evals.statistics.inference import Interval
from moc.plan.bank_optimizer import bank_optimizer
from moc.report.numbers.records import (
    Boundary,
    Control,
    Known,
    MemoryUse,
    Probe,
    ProbePoint,
    Route,
    Series,
    Shared,
    SourceLeakage,
    Stretch,
    TaskLeakage,
    TaskScore,
    UseWindow,
    WindowLosses,
)
from moc.report.numbers.study import (
    Arm,
    Cost,
    Match,
    MemoryShape,
    Parameters,
    Phase,
    Shape,
    Source,
    Study,
)
from moc.store.journal import Record

Tree = Mapping[str, Any]

ROUTES: tuple[Route, ...] = ("full", "prefix", "counterfactual")
# with the source itself, what decides the windows of text that a loss is measured on
_WINDOWS = ("context_length", "validation_tokens", "leakage_windows")


def study_of(
    config: Tree, text: str, plan: Tree, environment: Tree, trained: Mapping[str, Tree]
) -> Study:
    """From study.yaml (also as ``text``), plan.json and environment.json.

    Args:
        trained: arm -> what its first run recorded: ``causal``, and ``model`` as trained.
    """
    evals = config.get("evals") or {}
    shared = {f"evals.{key}": evals[key] for key in _WINDOWS if key in evals}
    shared |= {f"tokenizer.{key}": value for key, value in (config.get("tokenizer") or {}).items()}
    arms = config.get("arms") or {}
    planned = plan.get("arms", {})
    return Study(
        name=str(config.get("name")),
        description=config.get("description") or "",
        seeds=list(config.get("seeds") or []),
        sources={
            name: _source(name, entry, shared) for name, entry in config.get("data", {}).items()
        },
        phases=_phases(config.get("phases")),
        arms={
            n: _in_assay(config, _arm(n, arms[n], planned.get(n, {}), trained.get(n, {})))
            for n in arms
        },
        route_on=evals.get("route_on", "full"),
        num_followed=(evals.get("in_phase") or {}).get("num_items", 0),
        git_commit=_commit(environment.get("git_commit")),
        environment=dict(environment),
        config=text,
    )


def boundary_of(record: Tree, folder: Path, sources: Mapping[str, Source]) -> Boundary:
    """From evals.json."""
    leakage, memory = record.get("leakage") or {}, record.get("memory") or {}
    return Boundary(
        name=record["boundary"],
        index=record["index"],
        tokens=record.get("tokens"),
        elapsed_sec=record.get("elapsed_sec") or 0.0,
        tasks=_scores(record, sources),
        bits_per_byte=record.get("bits_per_byte") or {},
        knowledge=_knowledge(record),
        source_leakage={n: _source_leakage(e) for n, e in leakage.get("sources", {}).items()},
        task_leakage={n: _task_leakage(e) for n, e in leakage.get("tasks", {}).items()},
        memory=MemoryUse(
            {name: entry["load"] for name, entry in memory.get("sources", {}).items()},
            memory.get("drift", {}),
        ),
        controls={
            name: Control(_scores(part, sources), part.get("bits_per_byte") or {}, _knowledge(part))
            for name, part in (record.get("controls") or {}).items()
        },
        dir=folder,
    )


def probe_of(record: Tree, folder: Path) -> Probe:
    """From probe.json."""
    points = [
        ProbePoint(
            point["tokens"],
            {task: (entry["value"], entry["num_items"]) for task, entry in point["tasks"].items()},
        )
        for point in record["points"]
    ]
    return Probe(record["probe"], record["boundary"], record["index"], points, folder)


def shared_of(record: Tree) -> Shared | None:
    """From shared.json."""
    return Shared(record["arm"], record["phases"]) if record else None


def series_of(journal: Sequence[Record]) -> dict[str, Series]:
    """Metric -> tokens and values, from metrics.jsonl; by tokens, since a phase that was trained
    again stands behind those after it."""
    found: dict[str, Series] = {}
    for record in sorted(journal, key=lambda record: record["tokens"]):
        for name, value in record.get("metrics", {}).items():
            tokens, values = found.setdefault(name, ([], []))
            tokens.append(record["tokens"])
            values.append(float(value))
    return found


def windows_of(journal: Sequence[Record]) -> list[UseWindow]:
    """From memory_use.jsonl."""
    names = {field.name for field in fields(UseWindow)}
    return [UseWindow(**{k: v for k, v in line.items() if k in names}) for line in journal]


def _commit(text: str | None) -> str:
    commit, dash, _ = (text or "unknown").partition("-")
    return commit[:12] + (" with uncommitted changes" if dash else "")


def _source(name: str, entry: Tree, shared: Tree) -> Source:
    settings = {f"source.{key}": value for key, value in entry.items()}
    return Source(name, entry["kind"], {**settings, **shared})


def _phases(entries: Tree | None) -> dict[str, Phase]:
    return {
        name: Phase(
            name,
            entry["tokens"],
            entry["tokens_per_step"],
            entry["context_length"],
            entry["mixture"] or {},
        )
        for name, entry in (entries or {}).items()
    }


def _arm(name: str, entry: Tree, planned: Tree, trained: Tree) -> Arm:
    solved = (entry.get("iso_flop") or {}).get("solve")
    model = trained.get("model") or (None if solved else entry["model"])
    flops = planned.get("flops", {})
    return Arm(
        name=name,
        description=entry.get("description") or "",
        phases=_phases(entry.get("phases")),
        causal=trained.get("causal", planned.get("causal", True)),
        routing=(planned.get("memory") or {}).get("routing", "none"),
        bank_optimizer=bank_optimizer(dict(entry)),
        shape=_shape(model, planned.get("memory")) if model else None,
        iso_flop=_match(entry.get("iso_flop"), planned.get("iso_flop")),
        iso_param=_match(entry.get("iso_param"), planned.get("iso_param")),
        cost=Cost(
            parameters=Parameters(
                **{f.name: planned.get("parameters", {}).get(f.name) for f in fields(Parameters)}
            ),
            paper_forward_flops=flops.get("paper_forward_per_sequence"),
            hardware_train_flops=flops.get("hardware_train_per_token"),
            paper_train_flops=flops.get("paper_train", {}),
            steps=planned.get("steps", {}),
            state_bytes=planned.get("state_bytes"),
            activation_bytes=planned.get("activation_bytes"),
        ),
        size=entry.get("size"),
        twin_of=entry.get("twin_of"),
    )


def _in_assay(config: Tree, arm: Arm) -> Arm:
    assay = config.get("assay")
    if not assay:
        return arm
    role = "positive" if arm.family == assay["positive"] else None
    role = "negative" if arm.family in assay["negative"] else role
    return replace(arm, assay=config["name"], role=role)


def _shape(model: Tree, memory: Tree | None) -> Shape:
    bank = None
    if memory:
        bank = MemoryShape(**{key: x for key, x in memory.items() if key != "routing"})
    return Shape(model["num_layers"], model["dim"], model["mlp_dim"], bank)


def _match(setting: Tree | None, planned: Tree | None) -> Match | None:
    if not setting:
        return None
    return Match(setting["target"], (planned or {}).get("relative_error"))


def _scores(record: Tree, sources: Mapping[str, Source]) -> dict[str, TaskScore]:
    names = {field.name for field in fields(TaskScore)}
    found = {}
    for task, entry in (record.get("tasks") or {}).items():
        known = {key: value for key, value in entry.items() if key in names}
        if "source" not in known:  # before it was recorded: one source of a kind
            kind = task.partition("_")[0]
            known["source"] = next((s.name for s in sources.values() if s.kind == kind), None)
        found[task] = TaskScore(**known)
    return found


def _knowledge(record: Tree) -> dict[str, Known]:
    return {
        source: Known(
            source,
            {name: each["bits"] for name, each in entry["attributes"].items()},
            entry["num_all"],
            entry["demand"],
        )
        for source, entry in (record.get("knowledge") or {}).items()
    }


def _source_leakage(entry: Tree) -> SourceLeakage:
    windows = entry.get("per_window")
    return SourceLeakage(
        num_windows=entry.get("num_windows"),
        num_tokens=entry["num_tokens"],
        tokens=entry.get("tokens"),
        loss={route: entry[route] for route in ROUTES if route in entry},
        leakage=_interval(entry.get("leakage")),
        future=_interval(entry.get("future")),
        mismatch=_interval(entry.get("mismatch")),
        by_position=[
            Stretch(part["start"], part["end"], Interval(**part["leakage"]))
            for part in entry.get("by_position") or []
        ],
        by_window=windows
        and WindowLosses(
            windows["num_tokens"], {route: windows[route] for route in ROUTES if route in windows}
        ),
    )


def _task_leakage(entry: Tree) -> TaskLeakage:
    leakage = _interval(entry.get("leakage"))
    return TaskLeakage(entry.get("num_items"), entry.get("context"), entry.get("full"), leakage)


def _interval(entry: Tree | None) -> Interval | None:
    return Interval(entry["value"], entry["low"], entry["high"]) if entry else None
