"""The axes of ``moc tune``: settings of an arm by dotted keys, and what they change of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import fields, is_dataclass, replace
from typing import Any, get_args, get_type_hints

from moc.config.schema import ArmConfig, GroupConfig
from moc.config.tuning import interval_of
from moc.errors import ConfigError, nearest

Point = dict[str, Any]  # axis -> value

LR_SCALE = "lr_scale"
GROUPS = ("backbone", "memory_layers", "bank")


def at(arm: ArmConfig, point: Point) -> ArmConfig:
    """``arm`` with the settings of ``point``.

    Raises:
        ConfigError: for an axis that is no setting of an arm.
    """
    changed = deepcopy(arm)
    for axis, value in point.items():
        head, _, group = axis.partition(".")
        if head == LR_SCALE:
            _scale(changed, group, value)
        else:
            for place, key in _places(changed, axis.split("."), axis):
                _put(place, key, value)
    return changed


def relevant(arm: ArmConfig) -> ArmConfig:
    """``arm`` without the optimizer of what it does not have, or does not train."""
    has = [True, *2 * [arm.model.memory is not None]]
    phases = {}
    for name, phase in arm.phases.items():
        groups: Any = {
            group: GroupConfig(freeze=trained and getattr(phase.optimizer, group).freeze)
            for group, trained in zip(GROUPS, has, strict=True)
            if not trained or getattr(phase.optimizer, group).freeze
        }
        phases[name] = replace(phase, optimizer=replace(phase.optimizer, **groups))
    return replace(arm, phases=phases)


def axes_of(arm: ArmConfig, axes: Mapping[str, Any]) -> dict[str, Any]:
    """Those of ``axes`` that change anything of ``arm``.

    Raises:
        ConfigError: for an axis that is no setting of an arm.
    """
    as_it_is = relevant(arm)
    return {
        axis: values
        for axis, values in axes.items()
        if any(relevant(at(arm, {axis: value})) != as_it_is for value in ends(values))
    }


def ends(values: Any) -> list[Any]:
    """Of a range its ends, of a list all that it has."""
    interval = interval_of(values)
    return list(values) if interval is None else [interval.low, interval.high]


def is_whole(arm: ArmConfig, axis: str) -> bool:
    """Whether a range of that axis holds whole numbers alone.

    Raises:
        ConfigError: if the setting is no number.
    """
    if axis.partition(".")[0] == LR_SCALE:
        return False
    for place, key in _places(arm, axis.split("."), axis):
        hint = get_type_hints(type(place))[key] if is_dataclass(place) else type(place[key])
        kinds = {hint, *get_args(hint)}
        if not kinds & {int, float}:
            raise ConfigError(f"tuning.axes: {axis} is no number, and has no range; list values")
        return float not in kinds
    return False


def _scale(arm: ArmConfig, group: str, factor: float) -> None:
    if group and group not in GROUPS:
        raise ConfigError(f"tuning.axes: no group {group!r}; {nearest(group, GROUPS)}")
    for phase in arm.phases.values():
        for name in [group] if group else GROUPS:
            config = getattr(phase.optimizer, name)
            config.lr = config.lr * factor


def _places(tree: Any, keys: list[str], axis: str) -> Iterator[tuple[Any, str]]:
    """Every dataclass or mapping that has the setting, and its key there; none in an arm that has
    no such part."""
    key, *below = keys
    if isinstance(tree, dict):
        names, get = list(tree), tree.__getitem__
    elif is_dataclass(tree):
        names = [f.name for f in fields(tree)]
        get = lambda name: getattr(tree, name)  # noqa: E731
    else:
        return
    if key != "*" and key not in names:
        raise ConfigError(f"tuning.axes: {axis}: no {key!r} in an arm; {nearest(key, names)}")
    for name in names if key == "*" else [key]:
        if below:
            yield from _places(get(name), below, axis)
        else:
            yield tree, name


def _put(place: Any, key: str, value: Any) -> None:
    before = place[key] if isinstance(place, dict) else getattr(place, key)
    # YAML writes 1 for 1.0
    value = float(value) if isinstance(before, float) and type(value) is int else value
    if isinstance(place, dict):
        place[key] = value
    else:
        setattr(place, key, value)
