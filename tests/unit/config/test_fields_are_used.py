"""Every setting has a user: a shipped study, a preset, the README, or a comment in a study."""

import re
import typing
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from types import UnionType

import yaml

from moc.config.schema import StudyConfig
from moc.model import preset
from moc.model.config import ModelConfig, Preset

ROOT = Path(__file__).parents[3]
STUDIES = {path: path.read_text() for path in (ROOT / "experiments").rglob("*.yaml")}

# Settings that nothing shipped needs, each with the reason why it stays one.
EXCEPTIONS = {
    "ArmConfig.twin_of": "set by the loader, for every memory of a study with an assay",
    "ModelConfig.init_std": "the default is the published value; tests draw sharper routers",
}


def test_every_field_is_used_somewhere() -> None:
    unused = _fields(StudyConfig) - _in_studies() - _in_presets() - _in_prose()
    assert unused == set(EXCEPTIONS), "use it in a study, show it, or delete it"


def test_a_field_that_nobody_uses_is_found() -> None:
    @dataclass
    class Inner:
        shown: int = 0
        forgotten: int = 0

    @dataclass
    class Derived(Inner):
        own: int = 0

    @dataclass
    class Outer:
        inner: Inner | None = None
        named: dict[str, Derived] | None = None

    names = {"Inner.shown", "Inner.forgotten", "Derived.own"}
    assert _fields(Outer) == names  # not Outer's own: they hold nothing but other settings
    used = _keys(Outer, {"inner": {"shown": 1}, "named": {"a": {"own": 1}}})
    assert names - used == {"Inner.forgotten"}
    assert _keys(Outer, {"named": {"a": {"forgotten": 1}}}) == {"Inner.forgotten"}


def test_prose_shows_a_field_as_a_setting() -> None:
    text = "the setting forgotten is off; `a.shown=1` or {own: 2}, half_shown: 3"
    assert [_shows(text, name) for name in ("forgotten", "shown", "own")] == [False, True, True]


def _in_studies() -> set[str]:
    return set().union(*(_keys(StudyConfig, yaml.safe_load(text)) for text in STUDIES.values()))


def _in_presets() -> set[str]:
    """What a preset sets to something else than the default."""
    plain = asdict(ModelConfig())
    named = [preset(name) for name in typing.get_args(Preset)]
    return set().union(*(_keys(ModelConfig, _difference(asdict(one), plain)) for one in named))


def _in_prose() -> set[str]:
    comments = [line for text in STUDIES.values() for line in re.findall(r"#.*", text)]
    prose = "\n".join([(ROOT / "README.md").read_text(), *comments])
    return {field for field in _fields(StudyConfig) if _shows(prose, field.split(".")[1])}


def _shows(prose: str, name: str) -> bool:
    return re.search(rf"(?<!\w){name}[=:]", prose) is not None


def _fields(schema: type) -> set[str]:
    """All settings below ``schema`` as "Class.field", the class being the one that defines it."""
    found = set()
    for name, hint in _hints(schema).items():
        inner, _ = _inner(hint)
        found |= {_defined(schema, name)} if inner is None else _fields(inner)
    return found


def _keys(schema: type, settings: dict[str, typing.Any]) -> set[str]:
    """Those of ``_fields`` that ``settings``, as read from a YAML, mention."""
    found = set()
    hints = _hints(schema)
    for name in settings.keys() & hints.keys():  # no field: extends
        inner, by_name = _inner(hints[name])
        if inner is None:
            found.add(_defined(schema, name))
            continue
        value = settings[name] or {}
        for one in value.values() if by_name else [value]:
            found |= _keys(inner, one)
    return found


def _inner(hint: typing.Any) -> tuple[type | None, bool]:
    """The dataclass that a field holds, None for a plain value; and whether by name."""
    by_name = typing.get_origin(hint) is dict
    held = typing.get_args(hint)[1] if by_name else hint
    return (held, by_name) if is_dataclass(held) else (None, False)


def _hints(schema: type) -> dict[str, typing.Any]:
    hints = typing.get_type_hints(schema)
    return {field.name: _not_none(hints[field.name]) for field in fields(schema)}


def _not_none(hint: typing.Any) -> typing.Any:
    if typing.get_origin(hint) in (UnionType, typing.Union):
        return next(arg for arg in typing.get_args(hint) if arg is not type(None))
    return hint


def _defined(schema: type, name: str) -> str:
    """The class that a field was first written in: a subclass inherits its users, too."""
    owner = next(c for c in reversed(schema.__mro__) if name in getattr(c, "__annotations__", {}))
    return f"{owner.__name__}.{name}"


def _difference(settings: dict, plain: dict) -> dict:
    return {
        key: _difference(value, plain[key]) if isinstance(value, dict) else value
        for key, value in settings.items()
        if value != plain[key]
    }
