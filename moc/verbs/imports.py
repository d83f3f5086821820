"""Imports that take seconds."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def importing() -> Iterator[None]:
    """Without Python's garbage collector: its passes over the million objects that torch, lightning
    and MLflow are made of take a fifth of the time. They stay, so later passes need not look at
    them either, which takes half a second each."""
    before = len(sys.modules)
    gc.disable()
    try:
        yield
    finally:
        if len(sys.modules) > before:
            gc.freeze()
        gc.enable()
