"""The memory read: cross-attention from the residual stream to the chosen chapters.

B batch, L length, D model dim, M memory width, H heads, J key/value heads, R = H / J, E head dim,
C chapters, T tokens per chapter, N chapters read, U distinct chapters of the batch, G routing
groups.
"""

from __future__ import annotations

from typing import NamedTuple, TypedDict

import torch
from torch import Tensor, nn

from moc.model.config import ModelConfig
from moc.model.layers import NORM_EPS, FusedLinear, RMSNorm
from moc.model.memory.bank import distinct_chapters
from moc.model.memory.memory_state import MemoryState
from moc.model.memory.router import Router, Routing, read_everything
from moc.ops import (
    absorbed_attention,
    absorbs,
    project_chapters,
    project_tokens,
    read_figures,
    routed_attention,
    take_chapters,
    with_equal_weights,
)
from moc.ops.shards import is_sharded


class MemoryInputs(NamedTuple):
    """What a memory layer reads in one forward pass, and how, beside the residual stream."""

    bank_CTM: Tensor
    slot_UTM: Tensor | None = None  # takes the bank's gradient, see ``Transformer.gradient_slots``
    pool_BL: Tensor | None = None  # positions that ``sequence`` routing may pool; None: all
    state: MemoryState | None = None  # the positions go on from those that it has seen
    measure_mass: bool = False  # fill ``Routing.shared_mass``, from scores that are materialised


class _How(TypedDict):
    mixing: str
    group_tokens: int
    scale: float


class MemoryRead(nn.Module):
    """norm -> route -> attend to the chosen chapters -> project (arXiv 2603.21096, section 3)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        memory = config.memory
        assert memory is not None
        self.num_heads = memory.num_heads or config.num_heads
        self.num_kv_heads = memory.num_kv_heads or self.num_heads
        self.head_dim = config.dim // self.num_heads
        self.num_shared, routed = memory.num_shared, memory.num_routed is not None
        self.mixing = memory.mixing if routed else with_equal_weights(memory.mixing)
        # Shared and routed tokens live on different scales: each is normalised when both are there.
        self.normalise = routed and memory.num_shared > 0
        self.norm = RMSNorm(config.dim)
        self.q = nn.Linear(config.dim, self.num_heads * self.head_dim, bias=False)
        kv_dim = self.num_kv_heads * self.head_dim
        self.kv = FusedLinear(memory.dim or config.dim, {"k": kv_dim, "v": kv_dim})
        self.out = nn.Linear(self.num_heads * self.head_dim, config.dim, bias=False)
        self.router = Router(memory, config.dim) if routed else None

    def forward(
        self, x_BLD: Tensor, router_input_BLD: Tensor, inputs: MemoryInputs
    ) -> tuple[Tensor, Routing]:
        """What the positions read, (B, L, D), and how they were routed."""
        # Fetching from other ranks waits for the sizes anyway, and only what is read should
        # travel. Every rank fetches in every call, even with a state that knows the chapters: if
        # it depended on them, one rank could wait for another that has nothing to ask.
        if inputs.state is not None and not is_sharded(inputs.bank_CTM):
            out_BLHE, routing = self._read_on(x_BLD, router_input_BLD, inputs, inputs.state)
        else:
            routing = self._route(router_input_BLD, inputs)
            out_BLHE, routing = self._read(self._queries(x_BLD), routing, inputs)
        return self.out(out_BLHE.flatten(2)), routing

    def project(self, chapters_UTM: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (U, T, J, E) of chapters."""
        return self._by_head(*project_tokens(chapters_UTM, self.kv.weight, norm_eps=self._norm_eps))

    def _queries(self, x_BLD: Tensor) -> Tensor:
        return self.q(self.norm(x_BLD)).unflatten(-1, (self.num_heads, self.head_dim))

    def _route(self, router_input_BLD: Tensor, inputs: MemoryInputs) -> Routing:
        bank_CTM, state = inputs.bank_CTM, inputs.state
        if state is not None:
            return state.routing(state.choose(self.router, router_input_BLD, len(bank_CTM)))
        if self.router is None:
            batch, length, _ = router_input_BLD.shape
            return read_everything(len(bank_CTM), batch, length, router_input_BLD)
        return self.router(router_input_BLD, inputs.pool_BL)

    def _read(
        self, q_BLHE: Tensor, routing: Routing, inputs: MemoryInputs
    ) -> tuple[Tensor, Routing]:
        """Outputs (B, L, H, E) from chapters that are fetched, each once."""
        bank_CTM, slot_UTM = inputs.bank_CTM, inputs.slot_UTM
        chapter_U, row_BGN = distinct_chapters(
            len(bank_CTM), routing.index_BGN, self.num_shared, exact=is_sharded(bank_CTM)
        )
        routing = routing._replace(chapter_U=chapter_U)
        weight_BGN, how = routing.weight_BGN.to(q_BLHE.dtype), self._how(routing.group_tokens)
        k_UTJE = None
        if self._absorbs(q_BLHE, bank_CTM, chapter_U, row_BGN):
            # q.(mW) = (qW').m: queries and outputs go through the maps, and not the chapters
            k_JEM, v_JEM = self.kv.weight.unflatten(0, (2, self.num_kv_heads, -1))
            out_BLHM = absorbed_attention(
                _by_kv_head(q_BLHE, k_JEM),
                bank_CTM,
                chapter_U,
                row_BGN,
                weight_BGN,
                **how,
                norm_eps=self._norm_eps,
                slot_UTM=slot_UTM,
            )
            out_BLHE = _by_kv_head(out_BLHM, v_JEM.transpose(1, 2))
        else:
            k_UTJE, v_UTJE = self._by_head(
                *project_chapters(
                    bank_CTM,
                    chapter_U,
                    self.kv.weight,
                    norm_eps=self._norm_eps,
                    slot_UTM=slot_UTM,
                )
            )
            out_BLHE = routed_attention(q_BLHE, k_UTJE, v_UTJE, row_BGN, weight_BGN, **how)
        if inputs.measure_mass:
            if k_UTJE is None:
                k_UTJE, _ = self.project(take_chapters(bank_CTM, chapter_U))
            routing = self._measured(routing, q_BLHE, k_UTJE, row_BGN)
        return out_BLHE, routing

    def _read_on(
        self, x_BLD: Tensor, router_input_BLD: Tensor, inputs: MemoryInputs, state: MemoryState
    ) -> tuple[Tensor, Routing]:
        """Outputs (B, L, H, E) from what the state keeps."""
        q_BLHE = self._queries(x_BLD)
        choices = state.choose(self.router, router_input_BLD, len(inputs.bank_CTM))
        routing = state.routing(choices)
        out_BLHE = state.read(
            q_BLHE,
            choices,
            inputs.bank_CTM,
            self.project,
            mixing=self.mixing,
            scale=self.head_dim**-0.5,
        )
        if inputs.measure_mass:
            k_CTJE, _ = state.chapters.table()
            routing = self._measured(routing, q_BLHE, k_CTJE, routing.index_BGN)
        return out_BLHE, routing

    def _measured(
        self, routing: Routing, q_BLHE: Tensor, k_UTJE: Tensor, row_BGN: Tensor
    ) -> Routing:
        weight_BGN, how = routing.weight_BGN.to(q_BLHE.dtype), self._how(routing.group_tokens)
        figures = read_figures(q_BLHE, k_UTJE, row_BGN, weight_BGN, self.num_shared, **how)
        return routing._replace(shared_mass=figures.shared_mass)

    def _how(self, group_tokens: int) -> _How:
        return _How(mixing=self.mixing, group_tokens=group_tokens, scale=self.head_dim**-0.5)

    @property
    def _norm_eps(self) -> float | None:
        return NORM_EPS if self.normalise else None

    def _by_head(self, k_UTX: Tensor, v_UTX: Tensor) -> tuple[Tensor, Tensor]:
        shape = (self.num_kv_heads, self.head_dim)
        return k_UTX.unflatten(-1, shape), v_UTX.unflatten(-1, shape)

    def _absorbs(
        self, q_BLHE: Tensor, bank_CTM: Tensor, chapter_U: Tensor, row_BGN: Tensor
    ) -> bool:
        batch, length, _, _ = q_BLHE.shape
        _, num_tokens, memory_dim = bank_CTM.shape
        return absorbs(
            num_queries=batch * length,
            num_read=row_BGN.shape[-1],
            num_tokens=num_tokens,
            num_chapters=len(chapter_U),
            memory_dim=memory_dim,
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            gpu=q_BLHE.is_cuda,
        )


def _by_kv_head(x_BLHF: Tensor, map_JFO: Tensor) -> Tensor:
    """Each head's vectors through the map of its key/value head: (B, L, H, O)."""
    x_BLJRF = x_BLHF.unflatten(2, (map_JFO.shape[0], -1))
    return torch.einsum("bljrf,jfo->bljro", x_BLJRF, map_JFO).flatten(2, 3)
