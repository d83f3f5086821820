"""Whether what is on disk of a run was trained with the settings of today."""

from __future__ import annotations

from typing import Any

from moc.config.load import config_hash, differences, load_study
from moc.config.schema import ArmConfig, StudyConfig
from moc.data.windows import needed_tokens
from moc.errors import CheckpointError, ConfigError
from moc.store.rundir import RunDir
from moc.train.checkpoints import checkpoints_of, read_manifest


def boundary_hashes(
    study: StudyConfig, arm: ArmConfig, seed: int, tokenizer_fingerprint: str
) -> list[str]:
    """For every boundary, a hash of all that decides the weights there. Devices are left out: a
    run may go on with others."""
    hashes = [config_hash(arm.model, tokenizer_fingerprint, seed)]
    for phase in arm.phases.values():
        sources = {
            name: [study.data[name], needed_tokens(study, phase, name)] for name in phase.mixture
        }
        hashes.append(config_hash(hashes[-1], sources, phase, study.trainer.precision))
    return hashes


def check_settings(study: StudyConfig, arm_name: str, run_dir: RunDir, hashes: list[str]) -> None:
    """
    Raises:
        ConfigError: if the folder holds weights that were trained with other settings.
    """
    for index, expected in enumerate(hashes):
        found = [run_dir.boundary(index)]
        if index:
            found += checkpoints_of(run_dir.checkpoints, run_dir.boundary_name(index))
        for folder in found:
            if not (folder / "manifest.json").is_file():
                continue
            try:
                manifest = read_manifest(folder)
            except CheckpointError:
                continue  # whoever needs this folder explains
            if manifest["config_hash"] != expected:
                raise ConfigError(
                    f"{folder} was trained with other settings{_what_differs(study, arm_name)}; "
                    f"give the study another name (name=...), or remove {study.dir / 'arms'}"
                )


def _what_differs(study: StudyConfig, arm_name: str) -> str:
    """The settings that changed since the study was last run, as far as they are known."""
    path = study.dir / "study.yaml"
    if not path.is_file():
        return ""
    before = load_study(path)
    parts: list[tuple[Any, Any, str]] = [
        (before.arms.get(arm_name), study.arms[arm_name], f"arms.{arm_name}"),
        (before.data, study.data, "data"),
        (before.tokenizer, study.tokenizer, "tokenizer"),
    ]
    found = [line for part in parts for line in differences(*part)]
    more = f" and {len(found) - 2} more" if len(found) > 2 else ""
    return f" ({'; '.join(found[:2])}{more})" if found else ""
