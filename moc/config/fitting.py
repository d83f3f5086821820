"""Values that have the schema's types as they were read, as nearly all have: they need none of
OmegaConf's conversions, which take a third of a second for two small arms and one for eight."""

from __future__ import annotations

import functools
import types
import typing
from typing import Any

from moc.config.layers import Raw
from moc.config.schema import StudyConfig


class _DoesNotFit(Exception):
    """There is something to convert, to look up, or to refuse."""


def fitting_study(raw: Raw) -> StudyConfig | None:
    """What OmegaConf makes of ``raw`` laid over the schema's defaults; None where a value is not
    just what its field takes (``lr: "0.1"``, ``${...}``, a mistake), so that OmegaConf must say."""
    try:
        return typing.cast(StudyConfig, _fitting(raw, StudyConfig))
    except _DoesNotFit:
        return None


def _fitting(raw: Any, schema: Any) -> Any:
    origin, inner = typing.get_origin(schema), typing.get_args(schema)
    if origin in (types.UnionType, typing.Union):
        (schema,) = (each for each in inner if each is not types.NoneType)
        return None if raw is None else _fitting(raw, schema)
    kind = type(raw)
    if kind is str and ("${" in raw or raw == "???"):  # OmegaConf's word for a missing value
        raise _DoesNotFit
    if schema is Any and kind in (dict, list):
        origin, inner = kind, (str, Any) if kind is dict else (Any,)
    if kind is dict and all(type(key) is str for key in raw):
        if origin is dict:
            return {key: _fitting(value, inner[1]) for key, value in raw.items()}
        if not hasattr(schema, "__dataclass_fields__"):
            raise _DoesNotFit
        hints = _hints(schema)
        if raw.keys() <= hints.keys():
            return schema(**{key: _fitting(value, hints[key]) for key, value in raw.items()})
    elif kind is list and origin is list:
        return [_fitting(value, inner[0]) for value in raw]
    elif kind in (bool, int, float, str, types.NoneType):
        if kind is schema or schema is Any or (origin is typing.Literal and raw in inner):
            return raw
        if kind is int and schema is float and abs(raw) < 2**53:
            return float(raw)
    raise _DoesNotFit


@functools.cache
def _hints(schema: Any) -> dict[str, Any]:
    return typing.get_type_hints(schema)
