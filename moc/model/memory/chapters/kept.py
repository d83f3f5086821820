"""Keys and values that a memory layer keeps while it decodes.

B batch, P parts of a row's new positions, C chapters, T tokens per chapter, N chapters read, J
key/value heads, E head dim.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from moc.ops import take_rows


class KeptChapters:
    """Keys and values of the chapters read so far; a chapter is projected once."""

    def __init__(self) -> None:
        self.k_CTJE: Tensor | None = None
        self.v_CTJE: Tensor | None = None
        self.known_C: Tensor | None = None

    def fetch(
        self,
        index_BPN: Tensor,
        bank_CTM: Tensor,
        project: Callable[[Tensor], tuple[Tensor, Tensor]],
    ) -> None:
        """Project what is new of ``index_BPN``.

        Chapters are taken even if none is new: that may be a collective, and what a rank knows may
        differ by a rounding.
        """
        if self.known_C is None:
            self.known_C = torch.zeros(len(bank_CTM), dtype=torch.bool, device=index_BPN.device)
        wanted_X = index_BPN.flatten()
        new_X = wanted_X[~self.known_C[wanted_X]]
        new_U = new_X.unique() if len(new_X) else new_X
        chapters_UTM = take_rows(bank_CTM, new_U)
        if not len(new_U):
            return
        k_UTJE, v_UTJE = project(chapters_UTM)
        if self.k_CTJE is None or self.v_CTJE is None:
            # on a CPU, memory that nobody writes to is not taken
            self.k_CTJE = k_UTJE.new_empty(len(bank_CTM), *k_UTJE.shape[1:])
            self.v_CTJE = v_UTJE.new_empty(len(bank_CTM), *v_UTJE.shape[1:])
        self.k_CTJE.index_copy_(0, new_U, k_UTJE)
        self.v_CTJE.index_copy_(0, new_U, v_UTJE)
        self.known_C[new_U] = True

    def table(self) -> tuple[Tensor, Tensor]:
        """Keys and values (C, T, J, E), of which those of fetched chapters are filled."""
        assert self.k_CTJE is not None and self.v_CTJE is not None
        return self.k_CTJE, self.v_CTJE

    def copy(self, index_BN: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of fetched chapters side by side: (B, J, N * T, E) each."""
        k_CTJE, v_CTJE = self.table()
        _, num_tokens, num_kv_heads, width = k_CTJE.shape
        # rows of E numbers, which is one pass; whole chapters would have to be transposed
        token_T = torch.arange(num_tokens, device=index_BN.device)
        token_BI = (index_BN[..., None] * num_tokens + token_T).flatten(1)
        head_J1 = torch.arange(num_kv_heads, device=index_BN.device)[:, None]
        row_BJI = token_BI[:, None] * num_kv_heads + head_J1
        k_BJIE, v_BJIE = (
            x_CTJE.view(-1, width).index_select(0, row_BJI.flatten()).view(*row_BJI.shape, width)
            for x_CTJE in (k_CTJE, v_CTJE)
        )
        return k_BJIE, v_BJIE
