"""Whether what is on disk of a run was trained with the settings of today."""

from __future__ import annotations

from typing import Any

from moc.config.load import differences, load_study
from moc.config.schema import StudyConfig
from moc.errors import CheckpointError, ConfigError, FormatError
from moc.run.arm_seed import ArmSeed
from moc.store.manifest import read_manifest
from moc.store.rundir import StudyDir
from moc.train.checkpoints import checkpoints_of


def check_settings(run: ArmSeed) -> None:
    """
    Raises:
        ConfigError: if the folder holds weights that were trained with other settings.
        FormatError: if it was written in another format.
    """
    for index, expected in enumerate(run.hashes):
        found = [run.dir.boundary(index)]
        if index:
            found += checkpoints_of(run.dir.checkpoints, run.dir.boundary_name(index))
        for folder in found:
            if not (folder / "manifest.json").is_file():
                continue
            try:
                manifest = read_manifest(folder)
            except FormatError:
                raise
            except CheckpointError:
                continue  # whoever needs this folder explains
            if manifest["config_hash"] != expected:
                raise ConfigError(
                    f"{folder} was trained with other settings{_what_differs(run)}; give the "
                    f"study another name (name=...), or remove {run.study.dir / 'arms'}"
                )


def changed_settings(study: StudyConfig) -> list[str]:
    """``key: old, now new`` for what decides results and was another when the study was last run;
    machines may differ."""
    path = StudyDir(study.dir).config
    if not path.is_file():
        return []
    before = load_study(path, stored=True)
    parts = ("arms", "seeds", "data", "tokenizer", "evals", "probes")
    return [line for part in parts for line in _changes(before, study, part)]


def _what_differs(run: ArmSeed) -> str:
    """The settings that changed since the study was last run, as far as they are known."""
    path = StudyDir(run.study.dir).config
    if not path.is_file():
        return ""
    before = load_study(path, stored=True)
    parts: list[tuple[Any, Any, str]] = [
        (before.arms.get(run.name), run.arm, f"arms.{run.name}"),
        (before.data, run.study.data, "data"),
        (before.tokenizer, run.study.tokenizer, "tokenizer"),
    ]
    return in_short([line for part in parts for line in differences(*part)])


def in_short(changes: list[str]) -> str:
    """The first two in brackets; empty if there are none."""
    more = f" and {len(changes) - 2} more" if len(changes) > 2 else ""
    return f" ({'; '.join(changes[:2])}{more})" if changes else ""


def _changes(before: StudyConfig, study: StudyConfig, part: str) -> list[str]:
    return differences(getattr(before, part), getattr(study, part), part)
