"""What ``moc tune`` chose: a YAML that a study names (``tuned:``), laid over its arms."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from moc.config.identity import config_hash
from moc.config.schema import ArmConfig, PhaseConfig, StudyConfig
from moc.errors import ConfigError
from moc.model.config import ModelConfig

Raw = dict[str, Any]


def read_tuned(path: Path) -> Raw:
    """The file as plain values.

    Raises:
        ConfigError: if it is not there, or is another file.
    """
    if not path.is_file():
        raise ConfigError(f"tuned: no file {path}; 'moc tune' makes it")
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"tuned: {path} is not readable as YAML") from error
    if not isinstance(found, dict) or not isinstance(found.get("arms"), dict):
        raise ConfigError(f"tuned: {path} holds no arms; 'moc tune' writes such a file")
    return found


def settings_of(tuned: Raw) -> dict[str, Raw]:
    """By arm: what is laid over it; where one size was tuned for all, by the arm's name without
    its size, too."""
    found = {str(name): arm["settings"] for name, arm in tuned.get("arms", {}).items()}
    if (size := tuned.get("size")) is not None:
        found |= {name.removesuffix(f"-{size}"): settings for name, settings in found.items()}
    return found


def difference(before: Any, after: Any) -> Any:
    """The settings of ``after`` that differ from ``before``'s, nested as they are."""
    if not (isinstance(before, dict) and isinstance(after, dict)):
        return after
    changed = {key: value for key, value in after.items() if before.get(key) != value}
    return {key: difference(before.get(key), value) for key, value in changed.items()}


def tuned_for(arm: ArmConfig) -> str:
    """A hash of what ``arm`` trains and how, as far as it is not as usual: a setting that is new
    in this version, and has the value that says nothing, makes no other arm."""
    usual = asdict(PhaseConfig())
    return config_hash(
        difference(asdict(ModelConfig()), asdict(arm.model)),
        {name: difference(usual, asdict(phase)) for name, phase in arm.phases.items()},
    )


def check_tuned(study: StudyConfig, tuned: Raw) -> None:
    """
    Args:
        study: with what was chosen.

    Raises:
        ConfigError: if it was chosen for other arms.
    """
    again = "run 'moc tune' again, or remove 'tuned'"
    if others := [name for name in tuned["arms"] if name not in study.arms]:
        raise ConfigError(f"tuned: {study.tuned} is for an arm {others[0]!r}, which is not here")
    for name in study.arms:
        if name not in tuned["arms"]:
            size = study.arms[name].size
            if size and f"{name.removesuffix(size)}{tuned.get('size')}" in tuned["arms"]:
                continue  # it takes the choice of another size
            raise ConfigError(
                f"tuned: {study.tuned} has nothing for arms.{name}, which would be compared "
                f"untuned; {again}"
            )
        if tuned["arms"][name]["tuned_for"] != tuned_for(study.arms[name]):
            raise ConfigError(
                f"tuned: arms.{name} is another than {study.tuned} was made for (its model or its "
                f"phases have changed); {again}"
            )
