"""What a study's folder holds, read once. Missing files are missing results, not errors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

from omegaconf import OmegaConf

from moc.config.secrets import public_uris
from moc.report.numbers import parse
from moc.report.numbers.records import Boundary, ItemRecord, Probe, Run
from moc.report.numbers.study import Source, Study
from moc.store.files import read_json, read_lines
from moc.store.journal import read
from moc.store.rundir import Boundary as BoundaryDir
from moc.store.rundir import RunDir, StudyDir

Runs = dict[tuple[str, int], Run]  # by arm and seed


def read_study(study_dir: Path) -> tuple[Study, Runs]:
    """The study in ``study_dir`` and all of its runs.

    Raises:
        ValueError: if there is no study there.
    """
    folder = StudyDir(study_dir)
    if not folder.config.is_file():
        raise ValueError(
            f"{study_dir} holds no study.yaml; give the folder of a study that has run"
        )
    text = public_uris(folder.config.read_text())  # older versions kept them whole
    config = cast(dict[str, Any], OmegaConf.to_container(OmegaConf.create(text)))
    keys = [(arm, seed) for arm in config.get("arms") or {} for seed in config.get("seeds") or []]
    folders = {(arm, seed): folder.run(arm, seed) for arm, seed in keys}
    trained = {
        arm: _trained(folders[arm, seed] for seed in config.get("seeds") or [])
        for arm in config.get("arms") or {}
    }
    plan, environment = read_json(folder.plan), read_json(folder.environment)
    study = parse.study_of(config, text, plan, environment, trained)
    runs = {key: _load_run(folders[key], *key, study.sources) for key in keys}
    return study, runs


def item_records(boundary: Boundary, task: str, control: str = "") -> list[ItemRecord]:
    """What is behind a score; empty where it was not kept."""
    if boundary.dir is None:
        return []
    return read_lines(boundary.dir / "samples" / control / f"{task}.jsonl")


def probe_records(probe: Probe, task: str) -> list[ItemRecord]:
    """The item records before the first step; empty where there are none."""
    return read_lines(probe.dir / "samples-0" / f"{task}.jsonl")


def _load_run(folder: RunDir, arm: str, seed: int, sources: Mapping[str, Source]) -> Run:
    """What ``folder`` holds; of a run that has not started, nothing."""
    info = read_json(folder.info)
    reached = [(found.path, read_json(found.evals)) for found in _evaluated(folder)]
    return Run(
        arm=arm,
        seed=seed,
        started=info.get("started"),
        status=info.get("status"),
        peak_memory_bytes=info.get("peak_memory_bytes") or None,
        metrics=parse.series_of(read(folder.journal().path)),
        use=parse.windows_of(read(folder.memory_use().path)),
        boundaries={
            record["boundary"]: parse.boundary_of(record, path, sources) for path, record in reached
        },
        probes=[parse.probe_of(read_json(path / "probe.json"), path) for path in folder.probes()],
        shared=parse.shared_of(read_json(folder.shared)),
    )


def _trained(folders: Iterable[RunDir]) -> dict[str, Any]:
    """``causal`` and ``model`` of the first run that has them; what no run has is left out."""
    found: dict[str, Any] = {}
    for folder in folders:
        info = read_json(folder.info)
        if "causal" in info:
            found.setdefault("causal", bool(info["causal"]))
        for newest in _evaluated(folder)[-1:]:
            if model := read_json(newest.path / "model.json"):
                found.setdefault("model", model)
    return found


def _evaluated(folder: RunDir) -> list[BoundaryDir]:
    """The boundaries that have been evaluated, in order."""
    return [boundary for boundary in folder.boundaries() if boundary.evals.is_file()]
