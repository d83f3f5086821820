"""Where the tokens of an unfinished batch belong.

B batch, L new positions, M positions kept at most.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Positions:
    """How many tokens every row holds, and where those of the call under way go.

    The numbers are on the host, where it is decided what has to be computed; all ranks that decode
    a batch together know the same ones.
    """

    def __init__(self, batch: int, max_length: int, device: torch.device) -> None:
        self.max_length, self.device = max_length, device
        self.lengths = [0] * batch  # before the call under way
        self.counts = [0] * batch  # real tokens that it adds
        self.num_new = 0  # tokens that it adds, padding included
        self.num_used = 0  # no row is longer, padding included
        self.started = False  # rows have held tokens before
        self.level = True  # all rows have held the same number
        self.one_by_one = False  # this call and the one before it add a token each
        self.real_BL = torch.empty(batch, 0, dtype=torch.bool, device=device)
        self.position_BL = torch.empty(batch, 0, dtype=torch.long, device=device)
        self.seen_B1LM: Tensor | None = None

    def begin(self, tokens_BL: Tensor, real_BL: Tensor | None) -> Tensor:
        """Make room for a call's tokens; their positions, (L,) if all rows have the same."""
        batch, length = tokens_BL.shape
        longest = max(self.lengths)
        if longest + length > self.max_length:
            raise ValueError(
                f"the cache has room for {self.max_length} tokens a row, not for {longest + length}"
            )
        self.started, self.level = longest > 0, longest == min(self.lengths)
        self.one_by_one = length == self.num_new == 1
        self.num_new, self.num_used = length, longest + length
        if real_BL is None:
            self.real_BL = torch.ones_like(tokens_BL, dtype=torch.bool)
            self.counts = [length] * batch
        else:
            self.real_BL, self.counts = real_BL, real_BL.sum(1).tolist()
        if self.level:
            position_L = torch.arange(longest, longest + length, device=self.device)
            self.position_BL = position_L.expand(batch, -1)
        else:
            length_B1 = torch.tensor(self.lengths, device=self.device)[:, None]
            self.position_BL = length_B1 + torch.arange(length, device=self.device)
        self.seen_B1LM = None
        if self.started and not (self.level and length == 1):
            key_M = torch.arange(self.num_used, device=self.device)
            self.seen_B1LM = (key_M <= self.position_BL[..., None])[:, None]
        return self.position_BL[0] if self.level else self.position_BL

    def end(self) -> None:
        self.lengths = [n + new for n, new in zip(self.lengths, self.counts, strict=True)]

    def store(self, kept_BM: Tensor | None, new_BL: Tensor) -> Tensor:
        """Write what belongs to the new positions; what is kept of all so far.

        Padding is overwritten by the tokens that follow.
        """
        if kept_BM is None:
            kept_BM = new_BL.new_zeros(len(new_BL), self.max_length, *new_BL.shape[2:])
        if self.level:
            kept_BM[:, self.num_used - self.num_new : self.num_used] = new_BL
        else:
            kept_BM[self._row_B1(), self.position_BL] = new_BL
        return kept_BM

    def last(self, kept_BM: Tensor) -> Tensor:
        """What is kept of the position before each row's new ones: (B, 1, ...)."""
        if self.level:
            first = self.num_used - self.num_new
            return kept_BM[:, first - 1 : first]
        return kept_BM[self._row_B1(), self.position_BL[:, :1] - 1]

    def keep_rows(self, rows: list[int]) -> None:
        self.lengths = [self.lengths[row] for row in rows]

    def _row_B1(self) -> Tensor:
        return torch.arange(len(self.lengths), device=self.device)[:, None]
