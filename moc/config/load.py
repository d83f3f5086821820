"""How a study is loaded and checked; its schema is ``moc.config.schema``.

``load_study`` lays ``defaults <- preset <- extends <- yaml <- command line`` over one another, then
every arm, at every size of a ladder, over the result, and returns plain dataclasses.
"""

from __future__ import annotations

import functools
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from moc.config.fitting import fitting_study
from moc.config.interpolation import interpolated, put
from moc.config.layers import Layer, Raw, merged, with_arms
from moc.config.schema import StudyConfig
from moc.config.secrets import Interpolated, as_written, hide_environment, hide_uri
from moc.config.tuned import check_tuned, read_tuned, settings_of
from moc.config.yaml_text import MAX_BYTES, check_depth, read_yaml
from moc.errors import ConfigError, nearest
from moc.model.config import ChaptersConfig, MemoryConfig
from moc.ranges import check_numbers

# what OmegaConf raises beside its own errors: 10**400 for a float, a list for a mapping, ...
_OF_OMEGACONF = (
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)


def load_study(
    path: str | Path,
    overrides: Sequence[str] = (),
    *,
    stored: bool = False,
    check: Callable[[StudyConfig], None] | None = None,
    untuned: bool = False,
) -> StudyConfig:
    """The study in ``path`` with ``overrides`` (``key=value``) laid over it.

    Overrides change what the files name; they add no phase, arm, size or data source.

    Args:
        stored: it is a study's record: a text whose variables are not set stays as written.
        untuned: without what ``tuned`` names, which may not be there yet.
        check: called with what was read before its models are looked at, which imports torch.

    Raises:
        ConfigError: one line naming the file or argument, the key and the nearest valid choice.
    """
    layers = _read_with_parents(Path(path))
    for override in overrides:
        layers.append(("command line", _read_override(override, merged(layers))))
    raw = merged(layers)
    tuned = {} if stored or untuned or not raw.get("tuned") else read_tuned(Path(raw["tuned"]))
    study = _resolve(layers, str(path), stored=stored, chosen=settings_of(tuned))
    if tuned:
        check_tuned(study, tuned)
    if check is not None:
        check(study)
    from moc.config.validate import validate_study

    try:
        validate_study(study)
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from error
    return study


def study_folder(path: Path) -> Path:
    """Where the study in ``path`` keeps its files; its models are not looked at (which imports
    torch).

    Raises:
        ConfigError: if it cannot be read.
    """
    return _resolve(_read_with_parents(path), str(path), stored=False, chosen={}).dir


def save_study(study: StudyConfig, path: Path) -> None:
    """Write the resolved study, with interpolated text as it was written and URIs without secrets.

    ``load_study(path)`` gives the same object, but for those secrets and ``tuned``, where the
    environment is the same.
    """
    kept = as_written(study)
    kept.name = study.name  # a folder's name, whatever it was made of
    kept.tuned = None  # what was chosen is in the arms
    path.write_text(OmegaConf.to_yaml(OmegaConf.create(asdict(kept))))


def _read_with_parents(path: Path, children: tuple[Path, ...] = ()) -> list[Layer]:
    if not path.is_file():
        folders = path.parent.glob("[!.]*.yaml"), Path("experiments").rglob("[!.]*.yaml")
        found = sorted({str(file) for folder in folders for file in folder})
        raise ConfigError(f"{path}: no such study file; {nearest(str(path), found)}")
    if path.resolve() in children:
        raise ConfigError(f"{path}: 'extends' goes round in a circle")
    if path.stat().st_size > MAX_BYTES:
        raise ConfigError(f"{path}: a study has at most {MAX_BYTES:,} bytes; this is another file")
    try:
        text = path.read_text(encoding="utf-8")
        config = read_yaml(text)
    except Exception as error:  # YAML and OmegaConf errors share no base class
        raise ConfigError(f"{path}: not readable as YAML: {_one_line(error)}") from error
    if not isinstance(config, DictConfig):
        raise ConfigError(f"{path}: a study is a mapping of keys, not {type(config).__name__}")
    with _explained(str(path)):
        raw = _plain(config)
        hide_environment(raw)
        parent = raw.pop("extends", None)
        _check_keys(raw, StudyConfig, "", str(path))
    above = (
        []
        if parent is None
        else _read_with_parents(path.parent / str(parent), (*children, path.resolve()))
    )
    return [*above, (str(path), raw)]


def _read_override(override: str, raw: Raw) -> Raw:
    """One ``key=value``, checked against the entries that ``raw`` has."""
    if "=" not in override:
        raise ConfigError(f"{override!r}: an override is key=value")
    key, _, value = override.partition("=")
    with _explained(repr(override[:200])):
        try:
            check_depth(value)
            config = OmegaConf.from_dotlist([override])
        except YAMLError:  # such as a path that begins with '*'
            config = OmegaConf.create()
            OmegaConf.update(config, key, value)
        read = _plain(config)
        hide_environment(read)
    with _explained("command line"):
        _check_keys(read, StudyConfig, "", "command line")
    for section, entry in (
        ("phases", "phase"),
        ("arms", "arm"),
        ("data", "data source"),
        ("probes", "probe"),
        ("ladder", "size"),
    ):
        known = [str(name) for name in raw.get(section) or {}]
        for name in read.get(section) or {}:
            if name not in known:
                raise ConfigError(f"command line: no {entry} {name!r}; {nearest(name, known)}")
    return read


def _resolve(
    layers: list[Layer], source: str, *, stored: bool, chosen: Mapping[str, Raw]
) -> StudyConfig:
    with _explained(source):
        whole = with_arms(merged(layers), chosen)
    study = fitting_study(whole) or _converted(whole, source, layers, stored=stored)
    hide_uri(study.tracking.uri or "")
    # found again by a verb that runs elsewhere
    study.evals.task_paths = [_absolute(path) for path in study.evals.task_paths]
    study.tuned = study.tuned and _absolute(study.tuned)
    return study


def _converted(whole: Raw, source: str, layers: Sequence[Layer], *, stored: bool) -> StudyConfig:
    config = _typed(whole, source, layers)
    with _explained(source):
        written = list(interpolated(config, missing_ok=stored))
        study = typing.cast(StudyConfig, OmegaConf.to_object(config))
        for keys, value in written:
            put(study, keys, value)
    return study


def _typed(whole: Raw, source: str, layers: Sequence[Layer]) -> DictConfig:
    """``whole`` over the schema's defaults, its values of the schema's types. OmegaConf takes a
    third of a second for it, so the layers are looked at one by one only to say which is wrong."""
    try:
        return _over_defaults(whole, source)
    except ConfigError:
        for name, raw in layers:
            _over_defaults(raw, name)
        raise


def _over_defaults(raw: Raw, source: str) -> DictConfig:
    with _explained(source):
        defaults = OmegaConf.structured(StudyConfig)
        return typing.cast(DictConfig, OmegaConf.unsafe_merge(defaults, raw))


def _absolute(path: str) -> str:
    whole = str(Path(path).absolute())
    if not isinstance(path, Interpolated):
        return whole
    return path if whole == path else Interpolated(whole, str(Path.cwd() / path.written))


def _check_keys(raw: Any, schema: Any, path: str, source: str) -> None:
    """Every key and named choice of ``raw`` is in ``schema``; suggests the nearest for a typo."""
    here = path.removesuffix(".")
    if typing.get_origin(schema) is typing.Annotated:
        schema, limits = typing.get_args(schema)
        check_numbers(raw, limits, here)
    schema = _unwrap_optional(schema)
    if isinstance(raw, str) and "\0" in raw:
        raise ConfigError(f"{source}: {here} holds a NUL character, which no file or name can have")
    if typing.get_origin(schema) is typing.Literal:
        choices = typing.get_args(schema)
        if isinstance(raw, str) and raw not in choices and "${" not in raw:
            raise ConfigError(f"{source}: {here} cannot be {raw!r}; {nearest(raw, choices)}")
    elif isinstance(raw, dict) and typing.get_origin(schema) is list:
        raise ConfigError(f"{source}: {here} takes a list, not a mapping of keys")
    elif isinstance(raw, (dict, list)) and schema in (bool, int, float, str):
        raise ConfigError(f"{source}: {here} takes one value, not {str(raw)[:100]}")
    elif isinstance(raw, list) and typing.get_origin(schema) is list:
        for number, value in enumerate(raw):
            _check_keys(value, typing.get_args(schema)[0], f"{here}[{number}].", source)
    elif raw is None or not (is_dataclass(schema) or typing.get_origin(schema) is dict):
        return
    elif not isinstance(raw, dict):
        raise ConfigError(f"{source}: {here} takes a mapping of keys, not {raw!r}")
    elif typing.get_origin(schema) is dict:
        for key, value in raw.items():
            _check_keys(value, typing.get_args(schema)[1], f"{path}{key}.", source)
    else:
        hints = _hints(schema)
        for key, value in raw.items():
            if schema is MemoryConfig and key in ChaptersConfig.__dataclass_fields__:
                raise ConfigError(
                    f"{source}: {path}{key} is now {path}chapters.{key}: what belongs to a kind of "
                    f"memory stands under its name, {{kind: chapters, chapters: {{{key}: ...}}}}"
                )
            if key not in hints:
                raise ConfigError(
                    f"{source}: unknown key {(path + str(key))[:100]!r}; "
                    f"{nearest(str(key), list(hints))}"
                )
            _check_keys(value, hints[key], f"{path}{key}.", source)


@functools.cache
def _hints(schema: type) -> dict[str, Any]:
    return typing.get_type_hints(schema, include_extras=True)


def _plain(config: DictConfig) -> Raw:
    return typing.cast(Raw, OmegaConf.to_container(config))


def _unwrap_optional(hint: Any) -> Any:
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return next(arg for arg in typing.get_args(hint) if arg is not type(None))
    return hint


@contextmanager
def _explained(source: str) -> Iterator[None]:
    """One line for whatever OmegaConf makes of values that do not fit, its own errors or Python's.

    Raises:
        ConfigError: instead of them.
    """
    try:
        yield
    except ConfigError:
        raise
    except OmegaConfBaseException as error:
        key = f"{error.full_key}: " if error.full_key else ""
        raise ConfigError(f"{source}: {key}{_one_line(error)}") from error
    except _OF_OMEGACONF as error:
        raise ConfigError(f"{source}: {_one_line(error)}") from error


def _one_line(error: Exception) -> str:
    """What an error says, without the stack of keys below it, and cut before it fills a screen."""
    text = str(error).split("\n    full_key")[0].replace('in "<unicode string>", ', "at ")
    return " ".join(text.split())[:300]
