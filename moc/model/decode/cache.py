"""What an unfinished batch remembers, so that a new token costs one position.

B batch, L new positions, M positions kept at most, J key/value heads, E head dim, R rows kept.

Rows may hold different numbers of tokens.
"""

from __future__ import annotations

from typing import get_args

import torch
from torch import Tensor

from moc.model.config import ModelConfig
from moc.model.decode.memory_state import DecodePolicy, Recall
from moc.model.decode.positions import Places


class Cache:
    """Keys and values, routing state and projected chapters of every layer.

    Causal scopes decode as they train. ``sequence`` routing cannot: it pools tokens that are not
    there yet. ``policy`` says what stands in, and both are a mismatch with training:

    - ``prompt``: routing is that of the first call's tokens (pooled whole), from then on frozen.
    - ``running``: later tokens are routed on the mean over all positions so far, the new one
      included, or over the last ``window_tokens`` of them. Training never pooled such parts, and
      earlier positions keep what they read.

    Raises:
        ValueError: for an unknown policy or a window of no tokens.
    """

    def __init__(
        self,
        config: ModelConfig,
        batch: int,
        max_length: int,
        *,
        policy: DecodePolicy,
        window_tokens: int | None,
        device: torch.device,
    ) -> None:
        if policy not in get_args(DecodePolicy):
            raise ValueError(f"policy {policy!r} is none of {', '.join(get_args(DecodePolicy))}")
        if window_tokens is not None and window_tokens < 1:
            raise ValueError(f"window_tokens must be at least 1, or None; it is {window_tokens}")
        self.places = Places(batch, max_length, device)
        memory = config.memory
        readers = set(config.memory_layers())
        self.blocks = []
        for layer in range(config.num_layers):
            state = None
            if memory is not None and layer in readers:
                state = Recall(memory, self.places, policy, window_tokens)
            self.blocks.append(BlockState(KeyValues(self.places), state))

    def begin(self, tokens_BL: Tensor, real_BL: Tensor | None) -> Tensor:
        """Make room for a call's tokens; their positions, (L,) or (B, L)."""
        return self.places.begin(tokens_BL, real_BL)

    def end(self) -> None:
        self.places.end()

    def keep_rows(self, row_R: Tensor) -> None:
        """Go on with these rows only."""
        self.places.keep_rows(row_R.tolist())
        for block in self.blocks:
            block.attention.keep_rows(row_R)
            if block.memory is not None:
                block.memory.keep_rows(row_R)


class BlockState:
    def __init__(self, attention: KeyValues, memory: Recall | None) -> None:
        self.attention, self.memory = attention, memory


class KeyValues:
    """Keys and values of one self-attention, (B, M, J, E) each."""

    def __init__(self, places: Places) -> None:
        self.places = places
        self.k_BMJE: Tensor | None = None
        self.v_BMJE: Tensor | None = None

    def extend(self, k_BLJE: Tensor, v_BLJE: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Add a call's keys and values; all so far, and which of them each query may see.

        No mask: every row starts here, or each has a single query, which sees all.
        """
        self.k_BMJE = self.places.store(self.k_BMJE, k_BLJE)
        self.v_BMJE = self.places.store(self.v_BMJE, v_BLJE)
        if not self.places.started:
            return k_BLJE, v_BLJE, None
        used = slice(self.places.num_used)
        return self.k_BMJE[:, used], self.v_BMJE[:, used], self.places.seen_B1LM

    def keep_rows(self, row_R: Tensor) -> None:
        assert self.k_BMJE is not None and self.v_BMJE is not None
        self.k_BMJE, self.v_BMJE = self.k_BMJE[row_R], self.v_BMJE[row_R]
