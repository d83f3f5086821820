"""The backbone's parts: RMSNorm, rotary embedding, grouped-query attention, SwiGLU.

B batch, L sequence length, D model dim, H query heads, J key/value heads, E head dim.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moc.model.cache import KeyValues

NORM_EPS = 1e-5


class RMSNorm(nn.Module):
    """Root-mean-square norm with a learned scale, computed in float32."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x_D: Tensor) -> Tensor:
        # autocast would hand bfloat16 in: the sum of squares needs the mantissa
        wide = x_D.dtype if x_D.dtype == torch.float64 else torch.float32
        normed = F.rms_norm(x_D.to(wide), self.weight.shape, self.weight.to(wide), NORM_EPS)
        return normed.to(x_D.dtype)


def rotary_tables(
    position_L: Tensor, head_dim: int, theta: float, like: Tensor
) -> tuple[Tensor, Tensor]:
    """Cosines and sines for positions (L,) or (B, L): each (..., E / 2), at least float32."""
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    steps_E = torch.arange(0, head_dim, 2, device=like.device, dtype=dtype) / head_dim
    angles_LE = position_L[..., None].to(dtype) * theta**-steps_E
    return angles_LE.cos(), angles_LE.sin()


def rotate(x_BLHE: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary embedding, half-split pairs (i, i + E/2), in the tables' precision."""
    cos, sin = (table.unsqueeze(-2) for table in tables)
    first, second = x_BLHE.to(cos.dtype).chunk(2, dim=-1)
    rotated = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
    return rotated.to(x_BLHE.dtype)


class SelfAttention(nn.Module):
    """Causal grouped-query attention with rotary positions."""

    def __init__(self, dim: int, num_heads: int, num_kv_heads: int) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads, self.head_dim = num_heads, num_kv_heads, dim // num_heads
        self.q = nn.Linear(dim, num_heads * self.head_dim, bias=False)
        self.k = nn.Linear(dim, num_kv_heads * self.head_dim, bias=False)
        self.v = nn.Linear(dim, num_kv_heads * self.head_dim, bias=False)
        self.out = nn.Linear(num_heads * self.head_dim, dim, bias=False)

    def forward(
        self, x_BLD: Tensor, rotary: tuple[Tensor, Tensor], state: KeyValues | None = None
    ) -> Tensor:
        q_BLHE = rotate(self.q(x_BLD).unflatten(-1, (self.num_heads, self.head_dim)), rotary)
        k_BLJE = rotate(self.k(x_BLD).unflatten(-1, (self.num_kv_heads, self.head_dim)), rotary)
        v_BLJE = self.v(x_BLD).unflatten(-1, (self.num_kv_heads, self.head_dim))
        mask = None
        if state is not None:
            k_BLJE, v_BLJE, mask = state.extend(k_BLJE, v_BLJE)
        out_BHLE = F.scaled_dot_product_attention(
            q_BLHE.transpose(1, 2),
            k_BLJE.transpose(1, 2),
            v_BLJE.transpose(1, 2),
            attn_mask=mask,
            is_causal=mask is None,
            enable_gqa=self.num_heads != self.num_kv_heads,
        )
        return self.out(out_BHLE.transpose(1, 2).flatten(2))


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x))."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.gate = nn.Linear(dim, hidden_dim, bias=False)
        self.up = nn.Linear(dim, hidden_dim, bias=False)
        self.down = nn.Linear(hidden_dim, dim, bias=False)

    def forward(self, x_BLD: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x_BLD)) * self.up(x_BLD))
