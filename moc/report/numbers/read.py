"""What a study's folder holds, read once. Missing files are missing results, not errors; so are
damaged ones, which are named."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import yaml

from moc.config.secrets import public_uris
from moc.config.tuned import read_tuned
from moc.errors import DamagedFile
from moc.report.numbers import parse
from moc.report.numbers.records import Boundary, ItemRecord, Probe, Run
from moc.report.numbers.study import Source, Study
from moc.store.files import damaged_files, read_json, read_lines, read_sound_json, read_text
from moc.store.journal import Record, read_what_is_whole
from moc.store.rundir import Boundary as BoundaryDir
from moc.store.rundir import RunDir, StudyDir

_RUN_AGAIN = "`moc run` makes it again"
# Of YAML alone: what OmegaConf's reads otherwise (1e-3, dates), its own writing puts in quotes.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
Runs = dict[tuple[str, int], Run]  # by arm and seed


def read_study(study_dir: Path) -> tuple[Study, Runs, list[str]]:
    """The study in ``study_dir``, all of its runs, and in a line each what of them is damaged.

    Raises:
        ValueError: if there is no study there.
        DamagedFile: if its study.yaml cannot be read.
    """
    folder = StudyDir(study_dir)
    if not folder.config.is_file():
        raise ValueError(
            f"{study_dir} holds no study.yaml; give the folder of a study that has run"
        )
    text, config = _config(folder.config)
    text = public_uris(text)  # older versions kept them whole
    damaged: list[str] = []
    keys = [(arm, seed) for arm in config.get("arms") or {} for seed in config.get("seeds") or []]
    folders = {(arm, seed): folder.run(arm, seed) for arm, seed in keys}
    trained = {
        arm: _trained(folders[arm, seed] for seed in config.get("seeds") or [])
        for arm in config.get("arms") or {}
    }
    plan, environment = (_read(file, damaged) for file in (folder.plan, folder.environment))
    study = parse.study_of(config, text, plan, environment, trained)
    runs = {key: _load_run(folders[key], *key, study.sources, damaged) for key in keys}
    return study, runs, damaged


def item_records(boundary: Boundary, task: str, control: str = "") -> list[ItemRecord]:
    """What is behind a score; empty where it was not kept."""
    if boundary.dir is None:
        return []
    return read_lines(boundary.dir / "samples" / control / f"{task}.jsonl")


def probe_records(probe: Probe, task: str) -> list[ItemRecord]:
    """The item records before the first step; empty where there are none."""
    return read_lines(probe.dir / "samples-0" / f"{task}.jsonl")


def read_tuning(folder: Path) -> dict[str, Any]:
    """What ``moc tune`` chose for the study in ``folder``; empty if its arms were not tuned.

    Raises:
        ConfigError: if it cannot be read.
    """
    path = StudyDir(folder).tuning
    return read_tuned(path) if path.is_file() else {}


def _config(path: Path) -> tuple[str, dict[str, Any]]:
    """As text, and as plain values.

    Raises:
        DamagedFile: if it is no study's any more.
    """
    text = read_text(path, _RUN_AGAIN)
    try:
        config = yaml.load(text, Loader=_LOADER)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise DamagedFile(path, "not readable as YAML", _RUN_AGAIN) from error
    if not isinstance(config, dict) or not {"name", "arms", "phases", "data"} <= config.keys():
        raise DamagedFile(path, "no study", _RUN_AGAIN)
    return text, cast(dict[str, Any], config)


def _read(path: Path, damaged: list[str], remedy: str = _RUN_AGAIN) -> dict[str, Any]:
    """The object in ``path``; if it is damaged, ``damaged`` says so."""
    try:
        return read_json(path)
    except DamagedFile as error:
        damaged.append(f"{path} is damaged ({error.why}) and left out here; {remedy}")
        return {}


def _read_journal(path: Path, damaged: list[str]) -> list[Record]:
    records, message = read_what_is_whole(path)
    damaged += [message] if message else []
    return records


def _boundary(
    found: BoundaryDir, sources: Mapping[str, Source], damaged: list[str]
) -> Boundary | None:
    """None if its evals.json is damaged; without item records if one of them is."""
    if not (record := _read(found.evals, damaged)):
        return None
    boundary = parse.boundary_of(record, found.path, sources)
    spoiled = damaged_files(found.samples, record.get("samples", {}))
    damaged += [f"{path} is missing or damaged and left out here; {_RUN_AGAIN}" for path in spoiled]
    return replace(boundary, dir=None) if spoiled else boundary


def _load_run(
    folder: RunDir, arm: str, seed: int, sources: Mapping[str, Source], damaged: list[str]
) -> Run:
    """What ``folder`` holds; of a run that has not started, nothing."""
    info = _read(folder.info, damaged)
    found = [_boundary(each, sources, damaged) for each in _evaluated(folder)]
    boundaries = {boundary.name: boundary for boundary in found if boundary}
    journal = _read_journal(folder.journal().path, damaged)
    damaged += _cut_short(folder, journal, boundaries)
    probes = [(path, _read(path / "probe.json", damaged)) for path in folder.probes()]
    lost = "which phases another arm trained is no longer known; remove it"
    return Run(
        arm=arm,
        seed=seed,
        started=info.get("started"),
        status=info.get("status"),
        peak_memory_bytes=info.get("peak_memory_bytes") or None,
        metrics=parse.series_of(journal),
        use=parse.windows_of(_read_journal(folder.memory_use().path, damaged)),
        boundaries=boundaries,
        probes=[parse.probe_of(record, path) for path, record in probes if record],
        shared=parse.shared_of(_read(folder.shared, damaged, lost)),
    )


def _cut_short(
    folder: RunDir, journal: Sequence[Record], boundaries: Mapping[str, Boundary]
) -> list[str]:
    """Phases that have ended, whose end is not in the journal."""
    ends = {(record.get("phase"), record.get("tokens")) for record in journal}
    cut = [name for name, found in boundaries.items() if (name, found.tokens) not in ends]
    path = folder.journal().path
    return [f"{path} lacks the end of {', '.join(cut)}: it was cut short"] if cut else []


def _trained(folders: Iterable[RunDir]) -> dict[str, Any]:
    """``causal`` and ``model`` of the first run that has them; what no run has is left out."""
    found: dict[str, Any] = {}
    for folder in folders:
        info = read_sound_json(folder.info)
        if "causal" in info:
            found.setdefault("causal", bool(info["causal"]))
        for newest in _evaluated(folder)[-1:]:
            if model := read_sound_json(newest.path / "model.json"):
                found.setdefault("model", model)
    return found


def _evaluated(folder: RunDir) -> list[BoundaryDir]:
    """The boundaries that have been evaluated, in order."""
    return [boundary for boundary in folder.boundaries() if boundary.evals.is_file()]
