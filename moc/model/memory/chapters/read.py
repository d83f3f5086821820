"""Chapters: cross-attention from the residual stream to the chosen chapters.

B batch, L length, D model dim, M memory width, H heads, J key/value heads, R = H / J, E head dim,
C chapters, T tokens per chapter, N chapters read, U distinct chapters of the batch, G routing
groups.
"""

from __future__ import annotations

from typing import TypedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moc.model.layers import NORM_EPS, FusedLinear
from moc.model.memory.bank import distinct_rows
from moc.model.memory.chapters.sizes import Sizes
from moc.model.memory.chapters.state import ChaptersState
from moc.model.memory.seam import Address, Context
from moc.ops import (
    absorbed_attention,
    absorbs,
    project_chapters,
    project_tokens,
    read_figures,
    rms_norm,
    routed_attention,
    take_rows,
)
from moc.ops.shards import is_sharded


class _How(TypedDict):
    mixing: str
    group_tokens: int
    scale: float


class ChapterRead(nn.Module):
    """Attend to the chosen chapters, project (arXiv 2603.21096, section 3)."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.num_heads, self.num_kv_heads = sizes.num_heads, sizes.num_kv_heads
        self.head_dim, self.num_shared = sizes.head_dim, sizes.num_shared
        self.q = nn.Linear(sizes.dim, self.num_heads * self.head_dim, bias=False)
        self.kv = FusedLinear(sizes.memory_dim, {"k": sizes.kv_width, "v": sizes.kv_width})
        width = self.num_heads * self.head_dim
        self.out = nn.Linear(width, sizes.dim, bias=False)
        self.qk_norm = QueryKeyNorm(self.num_heads) if sizes.qk_norm else None
        self.gate = nn.Linear(sizes.dim, width, bias=False) if sizes.gated else None

    def forward(self, x_BLD: Tensor, address: Address, context: Context) -> tuple[Tensor, Address]:
        q_BLHE = self.q(x_BLD).unflatten(-1, (self.num_heads, self.head_dim))
        if self.qk_norm is not None:
            q_BLHE = self.qk_norm(q_BLHE)
        state = context.state
        # Fetching from other ranks waits for the sizes anyway, and only what is read should
        # travel. Every rank fetches in every call, even with a state that knows the chapters: if
        # it depended on them, one rank could wait for another that has nothing to ask.
        if state is not None and not is_sharded(context.bank.rows_RX):
            assert isinstance(state, ChaptersState)
            out_BLHE, address = self._read_on(q_BLHE, address, context, state)
        else:
            out_BLHE, address = self._read(q_BLHE, address, context)
        out_BLX = out_BLHE.flatten(2)
        if self.gate is not None:
            out_BLX = out_BLX * F.silu(self.gate(x_BLD))
        return self.out(out_BLX), address

    def project(self, chapters_UTM: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (U, T, J, E) of chapters."""
        return self._by_head(*project_tokens(chapters_UTM, self.kv.weight, norm_eps=self._norm_eps))

    def _read(self, q_BLHE: Tensor, address: Address, context: Context) -> tuple[Tensor, Address]:
        """Outputs (B, L, H, E) from chapters that are fetched, each once."""
        bank_CTM, slot_UTM = context.bank
        chapter_U, row_BGN = distinct_rows(bank_CTM, address.index_BGN, self.num_shared)
        address = address._replace(row_U=chapter_U)
        weight_BGN, how = address.weight_BGN, self._how(address.group_tokens)
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
        if context.measure:
            if k_UTJE is None:
                k_UTJE, _ = self.project(take_rows(bank_CTM, chapter_U))
            address = self._measured(address, q_BLHE, k_UTJE, row_BGN)
        return out_BLHE, address

    def _read_on(
        self, q_BLHE: Tensor, address: Address, context: Context, state: ChaptersState
    ) -> tuple[Tensor, Address]:
        """Outputs (B, L, H, E) from what the state keeps."""
        out_BLHE = state.read(
            q_BLHE,
            context.bank.rows_RX,
            self.project,
            mixing=self.sizes.mixing,
            scale=self.head_dim**-0.5,
        )
        if context.measure:
            k_CTJE, _ = state.chapters.table()
            address = self._measured(address, q_BLHE, k_CTJE, address.index_BGN)
        return out_BLHE, address

    def _measured(
        self, address: Address, q_BLHE: Tensor, k_UTJE: Tensor, row_BGN: Tensor
    ) -> Address:
        weight_BGN, how = address.weight_BGN, self._how(address.group_tokens)
        found = read_figures(q_BLHE, k_UTJE, row_BGN, weight_BGN, self.num_shared, **how)
        health = {"shared_mass": found.shared_mass, "effective_read": found.effective_tokens}
        return address._replace(health=health)

    def _how(self, group_tokens: int) -> _How:
        return _How(mixing=self.sizes.mixing, group_tokens=group_tokens, scale=self.head_dim**-0.5)

    @property
    def _norm_eps(self) -> float | None:
        return NORM_EPS if self.sizes.normalises_tokens else None

    def _by_head(self, k_UTX: Tensor, v_UTX: Tensor) -> tuple[Tensor, Tensor]:
        shape = (self.num_kv_heads, self.head_dim)
        k_UTJE, v_UTJE = k_UTX.unflatten(-1, shape), v_UTX.unflatten(-1, shape)
        return k_UTJE if self.qk_norm is None else normalised(k_UTJE), v_UTJE

    def _absorbs(
        self, q_BLHE: Tensor, bank_CTM: Tensor, chapter_U: Tensor, row_BGN: Tensor
    ) -> bool:
        if self.qk_norm is not None:
            return False  # a norm does not pass through a map
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


class QueryKeyNorm(nn.Module):
    """Queries of unit mean square times a learned temperature for each head.

    With normalised keys and the usual scale, scores are temperature * sqrt(E) * cosine.
    """

    def __init__(self, num_heads: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_heads))

    def forward(self, q_BLHE: Tensor) -> Tensor:
        return normalised(q_BLHE) * self.weight[:, None].to(q_BLHE.dtype)


def normalised(x_E: Tensor) -> Tensor:
    """Of unit mean square, in float32 or wider."""
    wide = torch.promote_types(x_E.dtype, torch.float32)
    return rms_norm(x_E.to(wide), None, NORM_EPS).to(x_E.dtype)


def _by_kv_head(x_BLHF: Tensor, map_JFO: Tensor) -> Tensor:
    """Each head's vectors through the map of its key/value head: (B, L, H, O)."""
    x_BLJRF = x_BLHF.unflatten(2, (map_JFO.shape[0], -1))
    return torch.einsum("bljrf,jfo->bljro", x_BLJRF, map_JFO).flatten(2, 3)
