"""The names that a study gives. Each becomes part of folders, files and metrics, where it must not
meet another one, or a word that has a meaning there."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from moc.config.controls import ALL, PREVIOUS
from moc.config.schema import StudyConfig
from moc.errors import ConfigError

MAX_BYTES = 100  # two names and an ending make a file's name, which has at most 255
_PARTIAL = ".partial"  # what is being written
_START = "start"  # the boundary before the first phase
# metrics of a phase begin with its name, others with one of these; "system" is MLflow's
_METRICS = ("eval", "control", "memory", "trajectory", "forgetting", "system")
_ENDS_OF_SOURCES = {
    ".full": "a task with that end is the one without it, routed on its answers",
    "-trained": "losses with that end are those on a source's training text",
}
# beside the studies in runs_dir, or (the last one) among MLflow's experiments
_OF_MLFLOW = ("mlflow.db", "mlartifacts", "mlruns", "default")
# variables that decide which code a program loads
_CODE = re.compile(r"PATH|(LD|DYLD|PYTHON).*")


def check_names(study: StudyConfig) -> None:
    """
    Raises:
        ConfigError: for a name that cannot be part of a file's, or that stands for something else.
    """
    _check_word(study.name, "name")
    for section in ("arms", "phases", "data", "probes"):
        names = list(getattr(study, section))
        for name in names:
            _check_word(name, section)
        _check_different(section, names)
    for name, arm in study.arms.items():
        if arm.size is not None and not name.endswith(f"-{arm.size}"):
            raise ConfigError(
                f"arms.{name}.size: an arm at size {arm.size!r} is called <arm>-{arm.size}"
            )
    _refuse(study.name, "name", _OF_MLFLOW, "runs_dir and MLflow have something else of that name")
    if _is_in_cache(study):
        raise ConfigError(
            f"name {study.name!r} makes {study.dir} the study's folder, which is the cache's too "
            f"(cache_dir {study.cache_dir}); give the study another name"
        )
    for name in study.phases:
        where = f"phases.{name}"
        _refuse(name, where, (_START,), "that is the boundary before the first phase")
        _refuse(name, where, (PREVIOUS, ALL), "evals.controls.bank_swap means something else by it")
        _refuse(name, where, _METRICS, "metrics that begin with it are no phase's")
    for name in study.launch.environment:
        if not re.fullmatch(r"[A-Za-z_]\w*", name) or "\0" in study.launch.environment[name]:
            raise ConfigError(f"launch.environment: {name[:50]!r} is no variable")
        if _CODE.fullmatch(name):
            raise ConfigError(
                f"launch.environment: {name} decides which code a program loads, which no study "
                "may; set it where you are"
            )
    for name in study.data:
        for end, meaning in _ENDS_OF_SOURCES.items():
            if f".{name}".casefold().endswith(end):
                raise ConfigError(f"data.{name}: give the source another name; {meaning}")
    for name in study.probes:
        _refuse(name, f"probes.{name}", study.phases, "a phase has it")
    # figures are called so
    ends = [(n, b) for n, p in study.probes.items() for b in p.after or [*study.phases][-1:]]
    for one, (name, after) in enumerate(ends):
        for other, before in ends[:one]:
            if f"{name}_{after}".casefold() == f"{other}_{before}".casefold():
                raise ConfigError(
                    f"probes.{name} after {after!r} and probes.{other} after {before!r} would "
                    "share the name of a figure; give one of the probes another name"
                )


def check_folders(study: StudyConfig) -> None:
    """
    Raises:
        ConfigError: if a file is where a run would have a folder.
    """
    for key, folder in (("runs_dir", study.dir), ("cache_dir", Path(study.cache_dir))):
        there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        if not there.is_dir():
            raise ConfigError(f"{key}: {there} is a file, not a folder; name another place")


def _check_word(name: str, where: str) -> None:
    if not re.fullmatch(r"\w[\w.-]*", name) or name.endswith(_PARTIAL):
        raise ConfigError(
            f"{name!r} cannot name a study, arm, phase, data source or probe; use letters, digits, "
            f"'_', '-', '.', and another end than '{_PARTIAL}'"
        )
    if len(name.encode()) > MAX_BYTES:
        raise ConfigError(
            f"{where}: {name[:20]}... is a name of {len(name.encode())} bytes; {MAX_BYTES} is the "
            "most that fits into the names of files"
        )


def _check_different(section: str, names: Iterable[str]) -> None:
    """Also where the file system does not tell upper from lower case."""
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(name.casefold(), name)
        if other != name:
            raise ConfigError(
                f"{section}: {other!r} and {name!r} differ only by case, and some file systems "
                "would give them one folder; give one of them another name"
            )


def _refuse(name: str, where: str, taken: Iterable[str], why: str) -> None:
    if name.casefold() in {word.casefold() for word in taken}:
        raise ConfigError(f"{where}: {name!r} is taken: {why}; give it another name")


def _is_in_cache(study: StudyConfig) -> bool:
    cache = Path(study.cache_dir)
    taken = [cache, cache / "tokens", cache / "tokenizers"]
    folder = str(study.dir.absolute()).casefold()
    return folder in {str(path.absolute()).casefold() for path in taken}
