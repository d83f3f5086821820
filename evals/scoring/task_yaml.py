"""lm-eval task YAMLs of a user, read without running anything that they name.

What lm-eval itself would import while it reads (``!function``) stays a ``Function`` until
``resolved`` is allowed to import it. Data files are relative to the YAML that names them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import yaml
from lm_eval.tasks._yaml_loader import _import_func_in_yml

from moc.errors import ConfigError

FORMATS = ("json", "csv", "parquet", "text")  # of data files, as values of dataset_path


class Function(NamedTuple):
    """A ``!function module.name``, and the YAML that it stands in."""

    name: str
    file: Path


class TaskYaml(NamedTuple):
    config: dict[str, Any]
    files: list[Path]  # that it was read from: itself and what it includes


def read_task_yaml(path: Path, including: tuple[Path, ...] = ()) -> TaskYaml:
    """A YAML with what it includes laid below it.

    Raises:
        ConfigError: for a file that is missing, no YAML, no mapping, or includes itself.
    """
    config = _read(path)
    config = _anchored(config, path.parent)
    includes = config.pop("include", [])
    below: dict[str, Any] = {}
    files = [path]
    for name in includes if isinstance(includes, list) else [includes]:
        included = path.parent / str(name)
        if included.resolve() in (path.resolve(), *(file.resolve() for file in including)):
            raise ConfigError(f"{path}: 'include' goes round in a circle")
        if not included.is_file():
            raise ConfigError(f"{path}: include {name!r}: no such file beside it")
        found = read_task_yaml(included, (*including, path))
        below |= found.config
        files += found.files
    return TaskYaml(below | config, files)


def resolved(value: Any, *, allow_code: bool, setting: str = "") -> Any:
    """``value`` with every ``Function`` imported.

    Raises:
        ConfigError: for one that cannot be imported, or for any unless ``allow_code``.
    """
    match value:
        case Function(name, file):
            if not allow_code:
                raise ConfigError(
                    f"{file}: {setting} is '!function {name}', code that would be run; if you "
                    "trust it, set evals.allow_task_code: true"
                )
            try:
                return _import_func_in_yml(name, file.parent.resolve())
            except Exception as error:  # whatever the user's module raises
                raise ConfigError(f"{file}: !function {name}: {one_line(error)}") from error
        case dict():
            return {
                key: resolved(
                    item, allow_code=allow_code, setting=f"{setting}.{key}" if setting else str(key)
                )
                for key, item in value.items()
            }
        case list():
            return [resolved(item, allow_code=allow_code, setting=setting) for item in value]
    return value


def one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def _read(path: Path) -> dict[str, Any]:
    class Loader(yaml.SafeLoader):
        """Plain values alone."""

    def function(loader: yaml.SafeLoader, node: yaml.Node) -> Function:
        return Function(str(loader.construct_scalar(node)), path)

    Loader.add_constructor("!function", function)
    try:
        config = yaml.load(path.read_text(encoding="utf-8"), Loader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: not readable as YAML: {one_line(error)}") from error
    if not isinstance(config, dict):
        raise ConfigError(f"{path}: a task is a mapping of keys, not {type(config).__name__}")
    return config


def _anchored(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """``config``, and the tasks and groups listed in it, with paths of data below ``folder``."""
    config = dict(config)
    path = config.get("dataset_path")
    if isinstance(path, str) and path not in FORMATS and (folder / path).is_dir():
        config["dataset_path"] = str(folder / path)
    kwargs = config.get("dataset_kwargs")
    if isinstance(kwargs, dict) and "data_files" in kwargs:
        config["dataset_kwargs"] = kwargs | {"data_files": _below(folder, kwargs["data_files"])}
    if isinstance(config.get("task"), list):
        config["task"] = [
            _anchored(member, folder) if isinstance(member, dict) else member
            for member in config["task"]
        ]
    return config


def _below(folder: Path, files: Any) -> Any:
    match files:
        case str():
            return str(folder / files)
        case list():
            return [_below(folder, file) for file in files]
        case dict():
            return {split: _below(folder, file) for split, file in files.items()}
    return files
