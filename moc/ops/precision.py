"""Which precision what is computed in: products take narrow numbers, sums are wide.

Scores in bfloat16 have 8 bits: a score of 30 is known to a tenth, and its exponential to 10%. So
scores, log-sum-exps and shares are float32 at least.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """Of scores, shares and sums, for inputs of ``dtype``: float32, or float64."""
    return torch.promote_types(dtype, torch.float32)


def product_dtype(x: Tensor) -> torch.dtype:
    """Of the inputs of products with ``x``: autocast's, or that of ``x``. Autocast leaves float64
    alone."""
    if torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64:
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype


def keys_and_values_in(dtype: torch.dtype, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Both in ``dtype``; still one object, if they are one."""
    wide_k = k.to(dtype)
    return wide_k, wide_k if v is k else v.to(dtype)


def without_autocast(
    function: Callable[Concatenate[Tensor, P], R],
) -> Callable[Concatenate[Tensor, P], R]:
    """``function`` chooses its precision by itself: autocast would round what is to be wide, and
    rounds no product that is written into a buffer."""

    @functools.wraps(function)
    def outside(x: Tensor, *arguments: P.args, **how: P.kwargs) -> R:
        with torch.autocast(x.device.type, enabled=False):
            return function(x, *arguments, **how)

    return outside
