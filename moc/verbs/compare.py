"""Several studies as one: their arms side by side, in the tables and figures of a single report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from moc.errors import ConfigError, nearest
from moc.report import build_report, load_results, result_tables
from moc.report.results import Results
from moc.report.runs import Run
from moc.store.find import study_dir_of
from moc.store.rundir import TRAINED

Tree = dict[str, Any]

# with the source itself, what decides the windows of text that a loss is measured on
_WINDOWS = ("context_length", "validation_tokens", "leakage_windows")


def compare(
    paths: Sequence[Path], *, baseline: str | None = None, out: Path | None = None
) -> tuple[str, Path]:
    """The text tables of the studies in ``paths`` (folders or YAMLs) and the path of their report.

    Args:
        baseline: the arm, named as in the report, that all others are compared with.
        out: the folder to write; by default ``compare-<names>`` beside the first study.

    Raises:
        ConfigError: for what is no study or has not run, two studies of one name, an unknown arm.
    """
    studies: dict[str, Results] = {}
    for path in paths:
        found = load_results(study_dir_of(path))
        if not any(run.evals for run in found.runs.values()):
            raise ConfigError(f"{found.dir}: no boundary of this study has been evaluated yet")
        name = str(found.study["name"])
        if name in studies:
            raise ConfigError(f"{found.dir} and {studies[name].dir} are both named {name!r}")
        studies[name] = found
    folder = out or next(iter(studies.values())).dir.parent / f"compare-{'-'.join(studies)}"
    if (folder / "study.yaml").is_file():
        raise ConfigError(f"--out {folder}: this is a study's own folder; give another one")
    results = joined(studies, folder)
    if baseline is not None and baseline not in results.arms:
        raise ConfigError(f"--baseline: no arm {baseline!r}; {nearest(baseline, results.arms)}")
    results.baseline = baseline
    notes = caveats(results, studies)
    results.study["description"] = " ".join(notes)
    text = "\n".join([result_tables(results), *notes])
    return text, build_report(results)


def joined(studies: dict[str, Results], folder: Path) -> Results:
    """The arms of all ``studies`` (by name) in one, called ``<study>/<arm>`` if there are several.

    Phases stand in the order of their first appearance. A source that a later study reads other
    text from than an earlier one becomes ``<source>@<study>``: losses on it are its own.

    Raises:
        ConfigError: if two studies have phases in common, in another order.
    """
    study: Tree = {"name": " + ".join(studies), "seeds": [], "phases": {}, "arms": {}, "data": {}}
    plan: Tree = {"arms": {}}
    runs: dict[tuple[str, int], Run] = {}
    texts: Tree = {}
    environment: Tree = {}
    for name, results in studies.items():
        arms = {arm: f"{name}/{arm}" if len(studies) > 1 else arm for arm in results.arms}
        sources = {}
        for source, config in results.study["data"].items():
            text = _text(results, source)
            same = _agree(texts.setdefault(source, text), text)
            sources[source] = source if same else f"{source}@{name}"
            study["data"].setdefault(sources[source], config)
        for key, value in results.study.items():
            study.setdefault(key, value)
        study["seeds"] += [seed for seed in results.seeds if seed not in study["seeds"]]
        common = [phase for phase in study["phases"] if phase in results.phases]
        if common != [phase for phase in results.phases if phase in common]:
            raise ConfigError(
                f"{name} has its phases in another order ({', '.join(results.phases)}) than "
                f"{next(iter(studies))}: what one forgets there is not what the other does"
            )
        for phase, config in _phases(results.study["phases"], sources).items():
            known = study["phases"].setdefault(phase, config)
            known["mixture"] = {**config["mixture"], **known["mixture"]}
        for arm, config in results.study["arms"].items():
            renamed = _retargeted(config, arms)
            study["arms"][arms[arm]] = renamed | {"phases": _phases(config["phases"], sources)}
        for arm, planned in results.plan.get("arms", {}).items():
            plan["arms"][arms[arm]] = _retargeted(planned, arms)
        for (arm, seed), run in results.runs.items():
            evals = {boundary: _record(record, sources) for boundary, record in run.evals.items()}
            runs[arms[arm], seed] = replace(run, arm=arms[arm], evals=evals)
        for key, value in results.environment.items():
            environment[f"{name}, {key}" if len(studies) > 1 else key] = value
    commits = dict.fromkeys(r.environment.get("git_commit") for r in studies.values())
    environment["git_commit"] = commits.popitem()[0] if len(commits) == 1 else "of several versions"
    for arm in study["arms"]:
        for seed in study["seeds"]:
            runs.setdefault((arm, seed), Run(arm, seed))
    return Results(dir=folder, study=study, plan=plan, environment=environment, runs=runs)


def caveats(results: Results, studies: dict[str, Results]) -> list[str]:
    """What stands in the way of a comparison, in sentences, for every two of ``studies``."""
    notes = []
    for one, other in combinations(studies, 2):
        pair = f"{one} and {other}"
        tasks = [task for task in studies[one].tasks if task in studies[other].tasks]
        if not tasks:
            notes.append(f"{pair} have no task in common: no difference between them is computed.")
        if not set(studies[one].seeds) & set(studies[other].seeds):
            notes.append(f"{pair} have no seed in common: no difference between them is computed.")
        for task in tasks:
            mine, others = (_measured(results, studies[name], name, task) for name in (one, other))
            if not (mine & others).any():
                notes.append(f"{task}: {pair} asked different items; no difference is computed.")
            elif (mine != others).any():
                num = int((mine & others).sum())
                notes.append(f"{task}: differences of {pair} are over their {num} common items.")
        for name in (one, other):
            lacking = [phase for phase in results.phases if phase not in studies[name].phases]
            if lacking:
                notes.append(f"{name} has no phase {', '.join(lacking)}.")
        for phase in studies[one].phases:
            budgets = [studies[name].study["phases"].get(phase, {}) for name in (one, other)]
            tokens = [budget.get("tokens") for budget in budgets]
            if tokens[1] not in (None, tokens[0]):
                notes.append(
                    f"{phase} has {tokens[0]:,} tokens in {one} and {tokens[1]:,} in {other}; "
                    f"figures mark its end as in {one}."
                )
    changed = [source for source in results.study["data"] if "@" in source]
    if changed:
        notes.append(f"Text that differs between the studies: {', '.join(changed)}.")
    return list(dict.fromkeys(notes))


def _text(results: Results, source: str) -> Tree:
    """What decides the text that losses on ``source`` are measured on."""
    settings = {key: results.study["evals"].get(key) for key in _WINDOWS}
    return {"source": results.study["data"][source], "evals": settings} | {
        "tokenizer": results.study["tokenizer"]
    }


def _agree(one: Any, other: Any) -> bool:
    """Settings that only one of them knows were added to the schema later, with a default."""
    if isinstance(one, dict) and isinstance(other, dict):
        return all(_agree(one[key], other[key]) for key in one.keys() & other.keys())
    return bool(one == other)


def _phases(phases: Tree, sources: dict[str, str]) -> Tree:
    return {
        name: phase | {"mixture": {sources[s]: share for s, share in phase["mixture"].items()}}
        for name, phase in phases.items()
    }


def _retargeted(entry: Tree, arms: dict[str, str]) -> Tree:
    """An arm's config or plan, whose matches name other arms."""
    changed = {}
    for key in ("iso_flop", "iso_param"):
        if match := entry.get(key):
            changed[key] = match | {"target": arms.get(match["target"], match["target"])}
    return entry | changed


def _record(record: Tree, sources: dict[str, str]) -> Tree:
    """A boundary's evals.json with its sources renamed."""

    def renamed(part: Tree) -> Tree:
        def new(name: str) -> str:
            bare = name.removesuffix(TRAINED)
            return sources.get(bare, bare) + name[len(bare) :]

        return {new(name): value for name, value in part.items()}

    changed: Tree = {"bits_per_byte": renamed(record.get("bits_per_byte") or {})}
    for key in ("leakage", "routing"):
        if part := record.get(key):
            changed[key] = part | {"sources": renamed(part.get("sources", {}))}
    changed["tasks"] = {
        task: score | ({"source": sources.get(score["source"])} if score.get("source") else {})
        for task, score in record.get("tasks", {}).items()
    }
    return record | changed


def _measured(results: Results, study: Results, name: str, task: str) -> np.ndarray:
    """(N,) which items of ``task`` any run of ``study`` has answered."""
    items, arms = results.items(task), [f"{name}/{arm}" for arm in study.arms]
    found = np.zeros(len(items.cluster_N), dtype=bool)
    for (arm, _, control), correct_SN in items.correct.items():
        if not control and arm in arms:
            found |= np.isfinite(correct_SN).any(axis=0)
    return found
