"""Which settings of a study are written with ``${...}``: found before their values replace them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import is_dataclass
from typing import Any

from omegaconf import Container, DictConfig, ListConfig, Node
from omegaconf.errors import OmegaConfBaseException

from moc.config.secrets import Interpolated, hide

Keys = tuple[Any, ...]  # from the study down to a setting


def interpolated(
    config: Container, *, missing_ok: bool = False
) -> Iterator[tuple[Keys, Interpolated]]:
    """Keys and value of every text setting in ``config`` that is written with ``${...}``.

    With ``missing_ok``, the value of one that cannot be resolved is what is written, and an empty
    text stands for it in ``config``: a study's folder can be read where its variables are not set.
    """
    for key, node in list(_children(config)):
        written = node._value()
        if isinstance(node, Container) and not node._is_interpolation():
            for keys, value in interpolated(node, missing_ok=missing_ok):
                yield (key, *keys), value
        elif node._is_interpolation() and not isinstance(node, Container):
            try:
                value = config[key]
            except OmegaConfBaseException:
                if not missing_ok:
                    raise
                value, config[key] = written, ""
            if isinstance(value, str):
                if "oc.env" in written:
                    hide(value, written)
                yield (key,), Interpolated(value, written)


def put(tree: Any, keys: Keys, value: Any) -> None:
    """Set what ``keys`` lead to in dataclasses, dicts and lists."""
    *above, last = keys
    for key in above:
        tree = getattr(tree, key) if is_dataclass(tree) else tree[key]
    if is_dataclass(tree):
        setattr(tree, last, value)
    else:
        tree[last] = value


def _children(config: Container) -> Iterator[tuple[Any, Node]]:
    if config._is_none() or config._is_missing():
        return
    keys = range(len(config)) if isinstance(config, ListConfig) else list(config)
    assert isinstance(config, (DictConfig, ListConfig))
    for key in keys:
        node = config._get_node(key)
        assert isinstance(node, Node)
        yield key, node
