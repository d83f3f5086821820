"""The memory read: cross-attention from the residual stream to the chosen chapters.

B batch, L length, D model dim, M memory width, H heads, J key/value heads, E head dim, C chapters,
T tokens per chapter, N chapters read, U distinct chapters of the batch, G routing groups.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from moc.model.bank import gather_distinct
from moc.model.cache import MemoryState
from moc.model.config import ModelConfig
from moc.model.layers import NORM_EPS, RMSNorm
from moc.model.router import Router, Routing, read_everything
from moc.ops import routed_attention, shared_attention_mass


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
        memory_dim = memory.dim or config.dim
        self.norm = RMSNorm(config.dim)
        self.q = nn.Linear(config.dim, self.num_heads * self.head_dim, bias=False)
        self.k = nn.Linear(memory_dim, self.num_kv_heads * self.head_dim, bias=False)
        self.v = nn.Linear(memory_dim, self.num_kv_heads * self.head_dim, bias=False)
        self.out = nn.Linear(self.num_heads * self.head_dim, config.dim, bias=False)
        self.router = Router(memory, config.dim) if routed else None

    def forward(
        self,
        x_BLD: Tensor,
        tapped_BLD: Tensor,
        bank_CTM: Tensor,
        pooled_BL: Tensor | None,
        *,
        state: MemoryState | None = None,
        measure_mass: bool = False,
    ) -> tuple[Tensor, Routing]:
        """What the positions read, (B, L, D), and how they were routed.

        ``tapped_BLD`` is what the router pools. With ``state``, the positions go on from those that
        it has seen. ``measure_mass`` also fills ``routing.shared_mass``, which materialises the
        attention scores: for diagnostics.
        """
        if self.router is None:
            batch, length, _ = x_BLD.shape
            routing = read_everything(bank_CTM.shape[0], batch, length, x_BLD)
        elif state is None:
            routing = self.router(tapped_BLD, pooled_BL)
        else:
            routing = state.route(self.router, tapped_BLD)
        if state is None:
            chapters_UTM, row_BGN = gather_distinct(bank_CTM, routing.index_BGN)
            k_UTJE, v_UTJE = self.project(chapters_UTM)
        else:
            k_UTJE, v_UTJE = state.chapters.fetch(routing.index_BGN, bank_CTM, self.project)
            row_BGN = routing.index_BGN
        q_BLHE = self.q(self.norm(x_BLD)).unflatten(-1, (self.num_heads, self.head_dim))
        # Without a router there is nothing to weigh: equal weights in the joint softmax would only
        # shrink keys and values by 1/C, so the tokens enter as they are.
        mixing = "unweighted" if self.router is None and self.mixing == "joint" else self.mixing
        weight_BGN = routing.weight_BGN.to(q_BLHE.dtype)
        width = routing.group_tokens
        out_BLHE = routed_attention(
            q_BLHE, k_UTJE, v_UTJE, row_BGN, weight_BGN, mixing=mixing, group_tokens=width
        )
        if measure_mass:
            mass = shared_attention_mass(
                q_BLHE,
                k_UTJE,
                row_BGN,
                weight_BGN,
                self.num_shared,
                mixing=mixing,
                group_tokens=width,
            )
            routing = routing._replace(shared_mass=mass)
        return self.out(out_BLHE.flatten(2)), routing

    def project(self, chapters_UTM: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (U, T, J, E) of chapters."""
        if self.normalise:
            chapters_UTM = F.rms_norm(chapters_UTM, chapters_UTM.shape[-1:], None, NORM_EPS)
        shape = (self.num_kv_heads, self.head_dim)
        return self.k(chapters_UTM).unflatten(-1, shape), self.v(chapters_UTM).unflatten(-1, shape)
