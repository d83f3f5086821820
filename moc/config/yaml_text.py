"""What YAML's loader must not be given."""

from __future__ import annotations

import yaml

MAX_BYTES = 1_000_000  # of a study's file: reading ten million takes minutes
MAX_DEPTH = 50  # a study of ours has 8
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # events alone: what is slow follows


def check_depth(text: str) -> None:
    """The loader that OmegaConf uses calls itself for every level and has no limit: thousands of
    open brackets end the process.

    Raises:
        ValueError: for a text with more than ``MAX_DEPTH`` levels.
        yaml.YAMLError: if it cannot be read.
    """
    depth = 0
    for event in yaml.parse(text, Loader=_LOADER):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MAX_DEPTH:
            raise ValueError(f"more than {MAX_DEPTH} levels of lists and mappings")
