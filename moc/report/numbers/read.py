"""What a study's folder holds, read once. Missing files are missing results, not errors."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

from omegaconf import OmegaConf

from moc.report.numbers import parse
from moc.report.numbers.records import Boundary, ItemRecord, Probe, Run
from moc.report.numbers.study import Source, Study
from moc.store.journal import read
from moc.store.rundir import RunDir

Runs = dict[tuple[str, int], Run]  # by arm and seed


def read_study(study_dir: Path) -> tuple[Study, Runs]:
    """The study in ``study_dir`` and all of its runs.

    Raises:
        ValueError: if there is no study there.
    """
    study_file = study_dir / "study.yaml"
    if not study_file.is_file():
        raise ValueError(
            f"{study_dir} holds no study.yaml; give the folder of a study that has run"
        )
    text = study_file.read_text()
    config = cast(dict[str, Any], OmegaConf.to_container(OmegaConf.create(text)))
    keys = [(arm, seed) for arm in config.get("arms") or {} for seed in config.get("seeds") or []]
    folders = {(arm, seed): _folder(study_dir, config, arm, seed) for arm, seed in keys}
    trained = {
        arm: _trained(folders[arm, seed] for seed in config.get("seeds") or [])
        for arm in config.get("arms") or {}
    }
    plan, environment = (_json(study_dir / name) for name in ("plan.json", "environment.json"))
    study = parse.study_of(config, text, plan, environment, trained)
    runs = {key: _load_run(folders[key], *key, study.sources) for key in keys}
    return study, runs


def item_records(boundary: Boundary, task: str, control: str = "") -> list[ItemRecord]:
    """What is behind a score; empty where it was not kept."""
    if boundary.dir is None:
        return []
    return _lines(boundary.dir / "samples" / control / f"{task}.jsonl")


def probe_records(probe: Probe, task: str) -> list[ItemRecord]:
    """The item records before the first step; empty where there are none."""
    return _lines(probe.dir / "samples-0" / f"{task}.jsonl")


def _folder(study_dir: Path, config: dict[str, Any], arm: str, seed: int) -> RunDir:
    phases = config["arms"][arm].get("phases") or config["phases"]
    return RunDir.of(study_dir, arm, seed, list(phases))


def _load_run(folder: RunDir, arm: str, seed: int, sources: Mapping[str, Source]) -> Run:
    """What ``folder`` holds; of a run that has not started, nothing."""
    info = _json(folder.path / "run.json")
    reached = [(path, _json(path / "evals.json")) for path in _boundaries(folder)]
    probes = sorted(folder.path.glob("probes/*/*/probe.json"))
    return Run(
        arm=arm,
        seed=seed,
        started=info.get("started"),
        status=info.get("status"),
        peak_memory_bytes=info.get("peak_memory_bytes") or None,
        metrics=parse.series_of(read(folder.journal().path)),
        chapters=parse.windows_of(read(folder.chapters().path)),
        boundaries={
            record["boundary"]: parse.boundary_of(record, path, sources) for path, record in reached
        },
        probes=[parse.probe_of(_json(path), path.parent) for path in probes],
        shared=parse.shared_of(_json(folder.path / "shared.json")),
    )


def _trained(folders: Iterable[RunDir]) -> dict[str, Any]:
    """``causal`` and ``model`` of the first run that has them; what no run has is left out."""
    found: dict[str, Any] = {}
    for folder in folders:
        info = _json(folder.path / "run.json")
        if "causal" in info:
            found.setdefault("causal", bool(info["causal"]))
        for newest in _boundaries(folder)[-1:]:
            if model := _json(newest / "model.json"):
                found.setdefault("model", model)
    return found


def _boundaries(folder: RunDir) -> list[Path]:
    """Those that have been evaluated, in order."""
    found = (folder.boundary(index) for index in range(len(folder.phases) + 1))
    return [path for path in found if (path / "evals.json").is_file()]


def _json(path: Path) -> dict[str, Any]:
    """Empty if there is no file."""
    return json.loads(path.read_text()) if path.is_file() else {}


def _lines(path: Path) -> list[ItemRecord]:
    """One JSON object a line; none if there is no file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
