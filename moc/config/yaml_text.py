"""What YAML's loader must not be given."""

from __future__ import annotations

from typing import Any

import yaml
from omegaconf import OmegaConf

MAX_BYTES = 1_000_000  # of a study's file: reading ten million takes minutes
MAX_DEPTH = 50  # a study of ours has 8
_MOST_NODES = 10_000
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # events alone: what is slow follows


def read_yaml(text: str) -> Any:
    """The config in ``text``. As OmegaConf reads it, but that a study of many arms may have more
    entries than OmegaConf's 10,000; aliases may not double what is written.

    Raises:
        ValueError, yaml.YAMLError: see ``check_depth``; or others of OmegaConf's.
    """
    most = max(_MOST_NODES, 2 * check_depth(text))
    return OmegaConf.create(text, max_yaml_expanded_nodes=most)


def check_depth(text: str) -> int:
    """The number of entries. The loader that OmegaConf uses calls itself for every level and has no
    limit: thousands of open brackets end the process.

    Raises:
        ValueError: for a text with more than ``MAX_DEPTH`` levels.
        yaml.YAMLError: if it cannot be read.
    """
    depth = num_nodes = 0
    for event in yaml.parse(text, Loader=_LOADER):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        num_nodes += isinstance(event, (yaml.CollectionStartEvent, yaml.ScalarEvent))
        if depth > MAX_DEPTH:
            raise ValueError(f"more than {MAX_DEPTH} levels of lists and mappings")
    return num_nodes
