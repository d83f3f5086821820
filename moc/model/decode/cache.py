"""What an unfinished batch keeps, so that a new token costs one position.

B batch, L new positions, M positions kept at most, J key/value heads, E head dim, R rows kept.

Rows may hold different numbers of tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, Literal, NamedTuple, Protocol, TypeVar, get_args

from torch import Tensor

from moc.model.decode.positions import Positions

DecodePolicy = Literal["prompt", "running"]


class RowState(Protocol):
    def keep_rows(self, row_R: Tensor) -> None: ...


Memory = TypeVar("Memory", bound=RowState)  # a memory layer's state, whatever its kind


class KeyValues:
    """Keys and values of one self-attention, (B, M, J, E) each."""

    def __init__(self, positions: Positions) -> None:
        self.positions = positions
        self.k_BMJE: Tensor | None = None
        self.v_BMJE: Tensor | None = None

    def extend(self, k_BLJE: Tensor, v_BLJE: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Add a call's keys and values; all so far, and which of them each query may see.

        No mask: every row starts here, or each has a single query, which sees all.
        """
        self.k_BMJE = self.positions.store(self.k_BMJE, k_BLJE)
        self.v_BMJE = self.positions.store(self.v_BMJE, v_BLJE)
        if not self.positions.started:
            return k_BLJE, v_BLJE, None
        used = slice(self.positions.num_used)
        return self.k_BMJE[:, used], self.v_BMJE[:, used], self.positions.seen_B1LM

    def keep_rows(self, row_R: Tensor) -> None:
        assert self.k_BMJE is not None and self.v_BMJE is not None
        self.k_BMJE, self.v_BMJE = self.k_BMJE[row_R], self.v_BMJE[row_R]


class BlockState(NamedTuple, Generic[Memory]):
    """One block's state; ``memory`` is None where it reads none."""

    attention: KeyValues
    memory: Memory | None


class Cache(Generic[Memory]):
    """Keys and values of every layer, and what its memory keeps.

    Causal scopes decode as they train. ``sequence`` routing cannot: it pools tokens that are not
    there yet. The policy says what stands in, and both are a mismatch with training:

    - ``prompt``: routing is that of the first call's tokens (pooled whole), from then on frozen.
    - ``running``: later tokens are routed on the mean over all positions so far, the new one
      included, or over the last ``window_tokens`` of them. Training never pooled such parts, and
      earlier positions keep what they read.
    """

    def __init__(self, positions: Positions, blocks: Sequence[BlockState[Memory]]) -> None:
        self.positions, self.blocks = positions, blocks

    def begin(self, tokens_BL: Tensor, real_BL: Tensor | None) -> Tensor:
        """Make room for a call's tokens; their positions, (L,) or (B, L)."""
        return self.positions.begin(tokens_BL, real_BL)

    def end(self) -> None:
        self.positions.end()

    def keep_rows(self, row_R: Tensor) -> None:
        """Go on with these rows only."""
        self.positions.keep_rows(row_R.tolist())
        for block in self.blocks:
            for state in (block.attention, block.memory):
                if state is not None:
                    state.keep_rows(row_R)


def check_policy(policy: str, window_tokens: int | None) -> None:
    """
    Raises:
        ValueError: for an unknown policy or a window of no tokens.
    """
    if policy not in get_args(DecodePolicy):
        raise ValueError(f"policy {policy!r} is none of {', '.join(get_args(DecodePolicy))}")
    if window_tokens is not None and window_tokens < 1:
        raise ValueError(f"window_tokens must be at least 1, or None; it is {window_tokens}")
