"""Windows of a text, as ``moc.data.windows.validation_windows`` cuts them. N windows, L length."""

from __future__ import annotations

import torch
from torch import Tensor


def real_lengths(counted_NL: Tensor) -> Tensor:
    """How many inputs of each window are text, (N,): only the last window may be padded.

    Args:
        counted_NL: bool, whether the prediction made at a position counts; never so at padding.
    """
    num_windows, length = counted_NL.shape
    lengths_N = torch.full((num_windows,), length)
    if num_windows:
        last_counted = counted_NL[-1].nonzero()
        lengths_N[-1] = int(last_counted[-1]) + 1 if len(last_counted) else 0
    return lengths_N
