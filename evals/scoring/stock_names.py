"""The names of lm-eval's tasks, groups and tags, listed beside this file for one version of it: to
find them in its 14,000 YAMLs takes 11 s, and minutes on a slow disk.

``python -m evals.scoring.hub`` lists them anew, once another version is pinned.
"""

from __future__ import annotations

import functools
import gzip
import importlib.metadata
from collections.abc import Iterable
from pathlib import Path

_LIST = Path(__file__).with_name("stock_names.txt.gz")  # the version, then a name a line


@functools.cache
def listed_names() -> frozenset[str] | None:
    """None: the list is of another version than is installed."""
    version, *names = gzip.decompress(_LIST.read_bytes()).decode().split("\n")
    return frozenset(names) if version == installed_version() else None


def installed_version() -> str:
    return importlib.metadata.version("lm_eval")


def write_names(names: Iterable[str]) -> None:
    text = "\n".join([installed_version(), *sorted(names)])
    _LIST.write_bytes(gzip.compress(text.encode(), mtime=0))
