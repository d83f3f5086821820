"""The memory read: cross-attention from the residual stream to the chosen chapters.

B batch, L length, D model dim, M memory width, H heads, J key/value heads, R = H / J, E head dim,
C chapters, T tokens per chapter, N chapters read, U distinct chapters of the batch, G routing
groups.
"""

from __future__ import annotations

from typing import TypedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moc.model.config import ModelConfig
from moc.model.decode.memory_state import Recall
from moc.model.layers import NORM_EPS, FusedLinear, RMSNorm
from moc.model.memory.bank import distinct_chapters
from moc.model.memory.router import Router, Routing, read_everything
from moc.ops import (
    absorbed_attention,
    absorbs,
    project_chapters,
    rms_norm,
    routed_attention,
    shared_attention_mass,
    take_chapters,
)
from moc.ops.bank_shards import is_sharded


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
        self.num_shared, self.mixing = memory.num_shared, memory.mixing
        routed = memory.num_routed is not None
        # Shared and routed tokens live on different scales: each is normalised when both are there.
        self.normalise = routed and memory.num_shared > 0
        self.norm = RMSNorm(config.dim)
        self.q = nn.Linear(config.dim, self.num_heads * self.head_dim, bias=False)
        kv_dim = self.num_kv_heads * self.head_dim
        self.kv = FusedLinear(memory.dim or config.dim, {"k": kv_dim, "v": kv_dim})
        self.out = nn.Linear(self.num_heads * self.head_dim, config.dim, bias=False)
        self.router = Router(memory, config.dim) if routed else None

    def forward(
        self,
        x_BLD: Tensor,
        tapped_BLD: Tensor,
        bank_CTM: Tensor,
        pooled_BL: Tensor | None,
        *,
        state: Recall | None = None,
        tap_UTM: Tensor | None = None,
        measure_mass: bool = False,
    ) -> tuple[Tensor, Routing]:
        """What the positions read, (B, L, D), and how they were routed.

        ``tapped_BLD`` is what the router pools. With ``state``, the positions go on from those that
        it has seen. ``tap_UTM``: see ``Transformer.taps``. ``measure_mass`` also fills
        ``routing.shared_mass``, which materialises the attention scores: for diagnostics.
        """
        if state is not None:
            choices = state.choose(self.router, tapped_BLD, len(bank_CTM))
            routing = state.routing(choices)
        elif self.router is None:
            batch, length, _ = x_BLD.shape
            routing = read_everything(bank_CTM.shape[0], batch, length, x_BLD)
        else:
            routing = self.router(tapped_BLD, pooled_BL)
        q_BLHE = self.q(self.norm(x_BLD)).unflatten(-1, (self.num_heads, self.head_dim))
        # Without a router there is nothing to weigh: equal weights in the joint softmax would only
        # shrink keys and values by 1/C, so the tokens enter as they are.
        mixing = "unweighted" if self.router is None and self.mixing == "joint" else self.mixing
        weight_BGN = routing.weight_BGN.to(q_BLHE.dtype)
        how = _How(mixing=mixing, group_tokens=routing.group_tokens, scale=self.head_dim**-0.5)
        k_UTJE = None
        sharded = is_sharded(bank_CTM)
        if state is not None and not sharded:
            out_BLHE = state.read(
                q_BLHE, choices, bank_CTM, self.project, mixing=mixing, scale=how["scale"]
            )
            row_BGN, (k_UTJE, _) = routing.index_BGN, state.chapters.table()
        else:
            # Fetching from other ranks waits for the sizes anyway, and only what is read should
            # travel. Every rank fetches in every call, even with a state that knows the chapters:
            # if it depended on them, one rank could wait for another that has nothing to ask.
            chapter_U, row_BGN = distinct_chapters(
                len(bank_CTM), routing.index_BGN, self.num_shared, exact=sharded
            )
            routing = routing._replace(chapter_U=chapter_U)
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
                    norm_eps=NORM_EPS if self.normalise else None,
                    tap_UTM=tap_UTM,
                )
                out_BLHE = _by_kv_head(out_BLHM, v_JEM.transpose(1, 2))
            else:
                k_UTJE, v_UTJE = self._project_from(bank_CTM, chapter_U, tap_UTM)
                out_BLHE = routed_attention(q_BLHE, k_UTJE, v_UTJE, row_BGN, weight_BGN, **how)
        if measure_mass:
            if k_UTJE is None:
                k_UTJE, _ = self.project(take_chapters(bank_CTM, chapter_U))
            mass = shared_attention_mass(
                q_BLHE,
                k_UTJE,
                row_BGN,
                weight_BGN,
                self.num_shared,
                **how,
            )
            routing = routing._replace(shared_mass=mass)
        return self.out(out_BLHE.flatten(2)), routing

    def _project_from(
        self, bank_CTM: Tensor, chapter_U: Tensor, tap_UTM: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """``project`` of chapters of the bank."""
        eager = bank_CTM.device.type == "cpu" and not torch.compiler.is_compiling()
        plain = not (is_sharded(bank_CTM) or torch.is_autocast_enabled("cpu"))
        if tap_UTM is None or not (eager and plain):
            return self.project(take_chapters(bank_CTM, chapter_U, tap_UTM))
        eps = NORM_EPS if self.normalise else None
        k_UTX, v_UTX = project_chapters(bank_CTM, chapter_U, tap_UTM, self.kv.weight, eps)
        shape = (self.num_kv_heads, self.head_dim)
        return k_UTX.unflatten(-1, shape), v_UTX.unflatten(-1, shape)

    def project(self, chapters_UTM: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (U, T, J, E) of chapters."""
        # one product for both would be a copy longer: each is taken by itself
        if self.normalise:
            chapters_UTM = rms_norm(chapters_UTM, None, NORM_EPS)
        k_UTX, v_UTX = (F.linear(chapters_UTM, map_XM) for map_XM in self.kv.weight.chunk(2))
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
