"""From a path that a user names to the study and the boundaries that it stands for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from moc.config.load import load_study, study_folder
from moc.config.schema import StudyConfig
from moc.errors import ConfigError, DamagedFile, nearest
from moc.store.files import read_text
from moc.store.rundir import RunDir, StudyDir


def study_dir_of(path: Path) -> Path:
    """The study folder that ``path`` (a study YAML, or anything inside the folder) belongs to.

    Raises:
        ConfigError: if there is none.
        FormatError: if it holds runs of another format.
    """
    folder = _study_dir_of(path)
    StudyDir(folder).check_format()
    return folder


def boundary_folders(path: Path) -> list[Path]:
    """``path`` itself if it is a boundary's folder, else all boundaries of the run in it, in order.

    Raises:
        ConfigError: if there is none.
    """
    _check_exists(path)
    if (path / "manifest.json").is_file() or (path / "model.json").is_file():
        return [path]
    found = [boundary.path for boundary in RunDir(path).boundaries()]
    if not found:
        raise ConfigError(f"{path} holds no model; name a seed's folder or one below boundaries/")
    return found


def study_of(path: Path, overrides: Sequence[str] = ()) -> tuple[StudyConfig, Path]:
    """The study that ``path`` belongs to, ``overrides`` laid over it, and its folder.

    Raises:
        ConfigError: if there is none, or an override cannot be used.
        DamagedFile: if its study.yaml is damaged.
    """
    folder = study_dir_of(path)
    config, remedy = StudyDir(folder).config, "`moc run` with the study's own YAML makes it again"
    read_text(config, remedy)
    try:
        study = load_study(config, stored=True)
    except ConfigError as error:
        raise DamagedFile(config, str(error), remedy) from error
    if overrides:
        study = load_study(config, overrides, stored=True)
    study.runs_dir = str(folder.parent)
    return study, folder


def _study_dir_of(path: Path) -> Path:
    if path.suffix in (".yaml", ".yml") and path.name != "study.yaml":
        folder = study_folder(path)
        if not (folder / "study.yaml").is_file():
            raise ConfigError(f"{folder}: this study has not been run yet; try: moc run {path}")
        return folder
    _check_exists(path)
    for folder in (path, *path.resolve().parents):
        if (folder / "study.yaml").is_file():
            return folder
    raise ConfigError(f"{path} is not inside a study's folder (no study.yaml above it)")


def _check_exists(path: Path) -> None:
    if path.exists():
        return
    path = path.absolute()
    parent = next(p for p in path.parents if p.exists())
    missing = path.relative_to(parent).parts[0]
    found = sorted(p.name for p in parent.iterdir() if not p.name.startswith("."))
    raise ConfigError(f"no {missing!r} in {parent}; {nearest(missing, found)}")
