"""What an unfinished batch remembers, so that a new token costs one position.

B batch, L new positions, M positions kept at most, D model dim, J key/value heads, E head dim,
C chapters, T tokens per chapter, N chapters read.

Rows may hold different numbers of tokens. With a cache every position is routed by itself, from the
same pooled states as its group in a forward pass over the whole sequence.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

from moc.model.config import ModelConfig, RouterConfig
from moc.model.router import Router, Routing, mean_of_last, running_sums

DecodePolicy = Literal["prompt", "running"]


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
                state = MemoryState(memory.router, self.places, policy, window_tokens)
            self.blocks.append(BlockState(KeyValues(self.places), state))

    def begin(self, tokens_BL: Tensor, real_BL: Tensor | None) -> Tensor:
        """Make room for a call's tokens; their positions (B, L)."""
        return self.places.begin(tokens_BL, real_BL)

    def end(self) -> None:
        self.places.end()

    def keep_rows(self, row_R: Tensor) -> None:
        """Go on with these rows only."""
        self.places.keep_rows(row_R)
        for block in self.blocks:
            block.attention.keep_rows(row_R)
            if block.memory is not None:
                block.memory.keep_rows(row_R)


class BlockState:
    def __init__(self, attention: KeyValues, memory: MemoryState | None) -> None:
        self.attention, self.memory = attention, memory


class Places:
    """Where the tokens of the call under way belong."""

    def __init__(self, batch: int, max_length: int, device: torch.device) -> None:
        self.max_length = max_length
        self.length_B = torch.zeros(batch, dtype=torch.long, device=device)
        self.num_used = 0  # no row is longer
        self.real_BL = torch.empty(batch, 0, dtype=torch.bool, device=device)
        self.position_BL = torch.empty(batch, 0, dtype=torch.long, device=device)
        self.num_before = 0  # tokens that the longest row can hold before this call

    def begin(self, tokens_BL: Tensor, real_BL: Tensor | None) -> Tensor:
        length = tokens_BL.shape[1]
        if self.num_used + length > self.max_length:
            raise ValueError(
                f"the cache has room for {self.max_length} tokens a row, not for "
                f"{self.num_used + length}"
            )
        whole = torch.ones_like(tokens_BL, dtype=torch.bool)
        self.real_BL = whole if real_BL is None else real_BL
        step_L = torch.arange(length, device=tokens_BL.device)
        self.position_BL = self.length_B[:, None] + step_L
        self.num_before, self.num_used = self.num_used, self.num_used + length
        return self.position_BL

    def end(self) -> None:
        self.length_B = self.length_B + self.real_BL.sum(1)

    def keep_rows(self, row_R: Tensor) -> None:
        self.length_B = self.length_B[row_R]


class KeyValues:
    """Keys and values of one self-attention, (B, M, J, E) each."""

    def __init__(self, places: Places) -> None:
        self.places = places
        self.k_BMJE: Tensor | None = None
        self.v_BMJE: Tensor | None = None

    def extend(self, k_BLJE: Tensor, v_BLJE: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Add a call's keys and values; all so far, and which of them each query may see.

        Padding is overwritten by the tokens that follow. No mask: every row starts here.
        """
        places = self.places
        if self.k_BMJE is None or self.v_BMJE is None:
            batch, _, *rest = k_BLJE.shape
            self.k_BMJE = k_BLJE.new_zeros(batch, places.max_length, *rest)
            self.v_BMJE = v_BLJE.new_zeros(batch, places.max_length, *rest)
        row_B1 = torch.arange(len(k_BLJE), device=k_BLJE.device)[:, None]
        self.k_BMJE[row_B1, places.position_BL] = k_BLJE
        self.v_BMJE[row_B1, places.position_BL] = v_BLJE
        if not places.num_before:
            return k_BLJE, v_BLJE, None
        key_M = torch.arange(places.num_used, device=k_BLJE.device)
        seen_B1LM = (key_M <= places.position_BL[..., None])[:, None]
        return self.k_BMJE[:, : places.num_used], self.v_BMJE[:, : places.num_used], seen_B1LM

    def keep_rows(self, row_R: Tensor) -> None:
        assert self.k_BMJE is not None and self.v_BMJE is not None
        self.k_BMJE, self.v_BMJE = self.k_BMJE[row_R], self.v_BMJE[row_R]


class MemoryState:
    """One memory layer: what its router has pooled, its choice in force, its chapters."""

    def __init__(
        self,
        config: RouterConfig,
        places: Places,
        policy: DecodePolicy,
        window_tokens: int | None,
    ) -> None:
        self.config, self.places, self.policy = config, places, policy
        self.window = config.window_tokens if config.scope == "segment" else window_tokens
        self.chapters = ProjectedChapters()
        self.sums_BMD: Tensor | None = None  # over the positions up to and including each
        self.index_BN: Tensor | None = None  # of the last real position
        self.weight_BN: Tensor | None = None

    def route(self, router: Router, x_BLD: Tensor) -> Routing:
        """The choice of every new position; G = L."""
        with torch.autocast(x_BLD.device.type, enabled=False):
            routing = self._route(router, x_BLD.to(router.linear.weight.dtype))
        last_B11 = (self.places.real_BL.sum(1) - 1).clamp(min=0)[:, None, None]
        last_B1N = last_B11.expand(-1, 1, routing.index_BGN.shape[-1])
        self.index_BN = routing.index_BGN.gather(1, last_B1N)[:, 0]
        self.weight_BN = routing.weight_BGN.gather(1, last_B1N)[:, 0]
        return routing

    def keep_rows(self, row_R: Tensor) -> None:
        if self.sums_BMD is not None:
            self.sums_BMD = self.sums_BMD[row_R]
        if self.index_BN is not None and self.weight_BN is not None:
            self.index_BN, self.weight_BN = self.index_BN[row_R], self.weight_BN[row_R]

    def _route(self, router: Router, x_BLD: Tensor) -> Routing:
        position_BL = self.places.position_BL
        if self.config.scope == "token":
            return router.choose(x_BLD, position_BL, 1)
        if self.config.scope == "sequence" and self.policy == "prompt" and self.places.num_before:
            return self._frozen(x_BLD)
        pooled_BLD = self._pool(x_BLD)
        if self.config.scope == "segment":
            width = self.config.segment_tokens
            fresh = router.choose(pooled_BLD, position_BL // width, 1)
            step_L = torch.arange(x_BLD.shape[1], device=x_BLD.device)
            return self._since(fresh, step_L - position_BL % width)
        first_BL = torch.zeros_like(position_BL)
        if not self.places.num_before:  # the prompt, pooled whole
            last_B1 = self.places.real_BL.sum(1, keepdim=True) - 1
            whole_B1D = pooled_BLD.gather(1, last_B1[..., None].expand(-1, -1, x_BLD.shape[-1]))
            return self._since(router.choose(whole_B1D, first_BL[:, :1], 1), first_BL)
        return router.choose(pooled_BLD, first_BL, 1)

    def _pool(self, x_BLD: Tensor) -> Tensor:
        """Means over what lies before each new position, itself included: (B, L, D)."""
        places = self.places
        # at padding they are overwritten by the tokens that follow
        sums_BLD = running_sums(x_BLD, self.window)
        if self.sums_BMD is None:
            self.sums_BMD = sums_BLD.new_zeros(len(x_BLD), places.max_length, x_BLD.shape[-1])
        row_B1 = torch.arange(len(x_BLD), device=x_BLD.device)[:, None]
        if places.num_before:
            sums_BLD = sums_BLD + self.sums_BMD[row_B1, places.position_BL[:, :1] - 1]
        self.sums_BMD[row_B1, places.position_BL] = sums_BLD
        # the first call of scope sequence is the prompt, which is pooled whole
        whole = self.config.scope == "sequence" and not places.num_before
        window = None if whole else self.window
        return mean_of_last(self.sums_BMD, places.position_BL, window).to(x_BLD.dtype)

    def _frozen(self, x_BLD: Tensor) -> Routing:
        """The choice in force, for every new position."""
        assert self.index_BN is not None and self.weight_BN is not None
        batch, length, _ = x_BLD.shape
        none_BGC = x_BLD.new_zeros(batch, length, 0)
        index_BLN = self.index_BN[:, None].expand(-1, length, -1)
        weight_BLN = self.weight_BN[:, None].expand(-1, length, -1)
        return Routing(none_BGC, none_BGC, index_BLN, weight_BLN, 1)

    def _since(self, fresh: Routing, step_BL: Tensor) -> Routing:
        """``fresh``'s choice at step ``step_BL`` of this call; where negative, the one in force."""
        source_BLN = step_BL.clamp(min=0)[..., None].expand(-1, -1, fresh.index_BGN.shape[-1])
        index_BLN = fresh.index_BGN.gather(1, source_BLN)
        weight_BLN = fresh.weight_BGN.gather(1, source_BLN)
        if self.index_BN is not None and self.weight_BN is not None:
            old_BL1 = (step_BL < 0)[..., None]
            index_BLN = torch.where(old_BL1, self.index_BN[:, None], index_BLN)
            weight_BLN = torch.where(old_BL1, self.weight_BN[:, None], weight_BLN)
        return fresh._replace(index_BGN=index_BLN, weight_BGN=weight_BLN)


class ProjectedChapters:
    """Keys and values of the chapters read so far; a chapter is projected once."""

    def __init__(self) -> None:
        self.k_CTJE: Tensor | None = None
        self.v_CTJE: Tensor | None = None
        self.known_C: Tensor | None = None

    def fetch(
        self,
        index_BGN: Tensor,
        bank_CTM: Tensor,
        project: Callable[[Tensor], tuple[Tensor, Tensor]],
    ) -> tuple[Tensor, Tensor]:
        """Keys and values (C, T, J, E), of which those at ``index_BGN`` are filled."""
        if self.known_C is None:
            self.known_C = torch.zeros(len(bank_CTM), dtype=torch.bool, device=bank_CTM.device)
        wanted_P = index_BGN.flatten()
        new_U = wanted_P[~self.known_C[wanted_P]].unique()
        if len(new_U):
            k_UTJE, v_UTJE = project(bank_CTM.index_select(0, new_U))
            if self.k_CTJE is None or self.v_CTJE is None:
                # on a CPU, memory that nobody writes to is not taken
                self.k_CTJE = k_UTJE.new_empty(len(bank_CTM), *k_UTJE.shape[1:])
                self.v_CTJE = v_UTJE.new_empty(len(bank_CTM), *v_UTJE.shape[1:])
            self.k_CTJE[new_U], self.v_CTJE[new_U] = k_UTJE, v_UTJE
            self.known_C[new_U] = True
        assert self.k_CTJE is not None and self.v_CTJE is not None
        return self.k_CTJE, self.v_CTJE
