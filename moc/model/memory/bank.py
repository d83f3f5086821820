"""The bank: what memory layers read.

C chapters, S shared, T tokens per chapter, M memory width, U chapters that a batch reads, B batch,
G groups, N = S + K chapters read per group.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Bank(nn.Module):
    """C chapters of T learned tokens of width M, in one (C, T, M) parameter."""

    def __init__(self, num_chapters: int, chapter_tokens: int, dim: int) -> None:
        super().__init__()
        self.tokens = nn.Parameter(torch.empty(num_chapters, chapter_tokens, dim))


def distinct_chapters(
    num_chapters: int, index_BGN: Tensor, num_shared: int, *, exact: bool = False
) -> tuple[Tensor, Tensor]:
    """The chapters that ``index_BGN`` reads, each once, ascending (U,); and the index renumbered.

    On a CPU, or with ``exact``, they are exactly those. Elsewhere, and in compiled code, U is
    ``most_distinct``, which depends on no data, so that nothing waits for the device or compiles
    twice: further chapters, which nobody reads, fill up the rest.
    """
    device = index_BGN.device
    most = most_distinct(num_chapters, index_BGN.shape, num_shared)
    used_C = torch.zeros(num_chapters, dtype=torch.int8, device=device)
    used_C[index_BGN.flatten()] = 1
    if exact or (device.type == "cpu" and not torch.compiler.is_compiling()):
        chapter_U = used_C.nonzero()[:, 0]
    elif most == num_chapters:
        return torch.arange(num_chapters, device=device), index_BGN
    else:
        chapter_U = used_C.argsort(descending=True, stable=True)[:most]
    row_C = torch.zeros(num_chapters, dtype=torch.long, device=device)
    row_C[chapter_U] = torch.arange(chapter_U.numel(), device=device)
    return chapter_U, row_C[index_BGN]


def most_distinct(num_chapters: int, shape_BGN: tuple[int, ...], num_shared: int) -> int:
    """How many distinct chapters groups can read at most: the shared ones, and K each."""
    batch, num_groups, num_read = shape_BGN
    return min(num_chapters, num_shared + batch * num_groups * (num_read - num_shared))
