"""The bank: what memory layers read.

C chapters, T tokens per chapter, M memory width, U chapters chosen by a batch, B batch, G groups.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Bank(nn.Module):
    """C chapters of T learned tokens of width M, in one (C, T, M) parameter."""

    def __init__(self, num_chapters: int, chapter_tokens: int, dim: int) -> None:
        super().__init__()
        self.tokens = nn.Parameter(torch.empty(num_chapters, chapter_tokens, dim))


def gather_distinct(bank_CTM: Tensor, index_BGN: Tensor) -> tuple[Tensor, Tensor]:
    """The chapters that a batch reads, each once.

    Returns:
        chapters (U, T, M) with U = min(C, B * G * N), a size that does not depend on the data (no
        device synchronisation, no recompilation; rows beyond the distinct ones are unread), and
        the index (B, G, N) renumbered to rows of it.
    """
    num_chapters = bank_CTM.shape[0]
    num_rows = min(num_chapters, index_BGN.numel())
    if num_rows == num_chapters:
        return bank_CTM, index_BGN
    used_C = torch.zeros(num_chapters, dtype=torch.int8, device=bank_CTM.device)
    used_C[index_BGN.flatten()] = 1
    chosen_U = used_C.argsort(descending=True, stable=True)[:num_rows]
    row_C = torch.zeros(num_chapters, dtype=torch.long, device=bank_CTM.device)
    row_C[chosen_U] = torch.arange(num_rows, device=bank_CTM.device)
    return bank_CTM.index_select(0, chosen_U), row_C[index_BGN]
