"""Several studies as one: their arms side by side, in the tables and figures of a single report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import TypeVar

import numpy as np

from moc.errors import ConfigError, nearest
from moc.report import build_report, load_results, result_tables
from moc.report.numbers.records import Boundary, Run, TaskScore
from moc.report.numbers.results import Results
from moc.report.numbers.study import Arm, Match, Phase, Source, Study
from moc.store.find import study_dir_of
from moc.store.rundir import TRAINED, StudyDir

Names = Mapping[str, str]  # of arms or sources: in their study -> in the joined one
Value = TypeVar("Value")


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
        folder_of_study = study_dir_of(path)
        boundaries = (b for run in StudyDir(folder_of_study).runs() for b in run.boundaries())
        if not any(boundary.evals.is_file() for boundary in boundaries):
            raise ConfigError(
                f"{folder_of_study}: no boundary of this study has been evaluated yet"
            )
        found = load_results(folder_of_study)
        name = found.study.name
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
    results.study = replace(results.study, description=" ".join(notes))
    text = "\n".join([result_tables(results), *notes])
    return text, build_report(results)


def joined(studies: dict[str, Results], folder: Path) -> Results:
    """The arms of all ``studies`` (by name) in one, called ``<study>/<arm>`` if there are several.

    Phases stand in the order of their first appearance. A source that a later study reads other
    text from than an earlier one becomes ``<source>@<study>``: losses on it are its own.

    Raises:
        ConfigError: if two studies have phases in common, in another order.
    """
    seeds: list[int] = []
    phases: dict[str, Phase] = {}
    arms: dict[str, Arm] = {}
    sources: dict[str, Source] = {}
    runs: dict[tuple[str, int], Run] = {}
    environment: dict[str, object] = {}
    for name, results in studies.items():
        study, several = results.study, len(studies) > 1
        new_arms = {arm: f"{name}/{arm}" if several else arm for arm in results.arms}
        new_sources = _join_sources(sources, study, name)
        common = [phase for phase in phases if phase in study.phases]
        if common != [phase for phase in study.phases if phase in common]:
            raise ConfigError(
                f"{name} has its phases in another order ({', '.join(study.phases)}) than "
                f"{next(iter(studies))}: what one forgets there is not what the other does"
            )
        for phase in _phases(study.phases, new_sources).values():
            known = phases.setdefault(phase.name, phase)
            mixture = {**phase.mixture, **known.mixture}
            phases[phase.name] = replace(known, mixture=mixture)
        for arm in study.arms.values():
            arms[new_arms[arm.name]] = _arm(arm, new_arms, new_sources)
        seeds += [seed for seed in study.seeds if seed not in seeds]
        for (arm_name, seed), run in results.runs.items():
            at = {key: _boundary(one, new_sources) for key, one in run.boundaries.items()}
            key = new_arms[arm_name], seed
            runs[key] = replace(run, arm=key[0], boundaries=at)
        for what, value in study.environment.items():
            environment[f"{name}, {what}" if several else what] = value
    commits = {results.study.git_commit for results in studies.values()}
    first = next(iter(studies.values())).study
    study = replace(
        first,
        name=" + ".join(studies),
        seeds=seeds,
        sources=sources,
        phases=phases,
        arms=arms,
        git_commit=commits.pop() if len(commits) == 1 else "of several versions",
        environment=environment,
        config="\n".join(f"# {name}\n{results.study.config}" for name, results in studies.items()),
    )
    for arm_name in arms:
        for seed in seeds:
            runs.setdefault((arm_name, seed), Run(arm_name, seed))
    damaged = [line for results in studies.values() for line in results.damaged]
    return Results(folder, study, runs, damaged)


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
            asked, by_other = (_measured(results, studies[n], n, task) for n in (one, other))
            if not (asked & by_other).any():
                notes.append(f"{task}: {pair} asked different items; no difference is computed.")
            elif (asked != by_other).any():
                num = int((asked & by_other).sum())
                notes.append(f"{task}: differences of {pair} are over their {num} common items.")
        for name in (one, other):
            lacking = [phase for phase in results.phases if phase not in studies[name].phases]
            if lacking:
                notes.append(f"{name} has no phase {', '.join(lacking)}.")
        for phase in studies[one].phases:
            mine, others = (studies[name].study.phases.get(phase) for name in (one, other))
            if mine and others and mine.tokens != others.tokens:
                notes.append(
                    f"{phase} has {mine.tokens:,} tokens in {one} and {others.tokens:,} in "
                    f"{other}; figures mark its end as in {one}."
                )
    changed = [source for source in results.study.sources if "@" in source]
    if changed:
        notes.append(f"Text that differs between the studies: {', '.join(changed)}.")
    return list(dict.fromkeys(notes))


def _join_sources(known: dict[str, Source], study: Study, study_name: str) -> Names:
    """Adds the sources of ``study`` to ``known``; the names that they have there."""
    names = {}
    for name, source in study.sources.items():
        first = known.setdefault(name, source)
        names[name] = name if _same_text(first, source) else f"{name}@{study_name}"
        known.setdefault(names[name], source)
    return names


def _same_text(one: Source, other: Source) -> bool:
    """Settings that only one of them knows were added to the schema later, with a default."""
    common = one.text_settings.keys() & other.text_settings.keys()
    return all(one.text_settings[key] == other.text_settings[key] for key in common)


def _phases(phases: Mapping[str, Phase], sources: Names) -> dict[str, Phase]:
    return {
        name: replace(phase, mixture={sources[s]: share for s, share in phase.mixture.items()})
        for name, phase in phases.items()
    }


def _arm(arm: Arm, arms: Names, sources: Names) -> Arm:
    """With its own name, those of the arms that it is matched to and those of sources."""

    def match(found: Match | None) -> Match | None:
        return found and replace(found, target=arms.get(found.target, found.target))

    return replace(
        arm,
        name=arms[arm.name],
        phases=_phases(arm.phases, sources),
        iso_flop=match(arm.iso_flop),
        iso_param=match(arm.iso_param),
        twin_of=arm.twin_of and arms[arm.twin_of],
    )


def _boundary(at: Boundary, sources: Names) -> Boundary:
    """With its sources renamed."""

    def renamed(part: Mapping[str, Value]) -> dict[str, Value]:
        return {_source(name, sources): value for name, value in part.items()}

    def score(found: TaskScore) -> TaskScore:
        return replace(found, source=found.source and sources.get(found.source))

    return replace(
        at,
        tasks={task: score(found) for task, found in at.tasks.items()},
        bits_per_byte=renamed(at.bits_per_byte),
        knowledge=renamed(at.knowledge),
        source_leakage=renamed(at.source_leakage),
        memory=replace(at.memory, load=renamed(at.memory.load)),
        controls={
            name: replace(
                control,
                bits_per_byte=renamed(control.bits_per_byte),
                knowledge=renamed(control.knowledge),
            )
            for name, control in at.controls.items()
        },
    )


def _source(name: str, sources: Names) -> str:
    bare = name.removesuffix(TRAINED)
    return sources.get(bare, bare) + name[len(bare) :]


def _measured(results: Results, study: Results, name: str, task: str) -> np.ndarray:
    """(N,) which items of ``task`` any run of ``study`` has answered."""
    items, arms = results.items(task), [f"{name}/{arm}" for arm in study.arms]
    found = np.zeros(len(items.cluster_N), dtype=bool)
    for (arm, _, control), correct_SN in items.correct.items():
        if not control and arm in arms:
            found |= np.isfinite(correct_SN).any(axis=0)
    return found
