"""The backbone's parts: RMSNorm, rotary embedding, grouped-query attention, SwiGLU.

B batch, L sequence length, D model dim, H query heads, J key/value heads, E head dim.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moc.model.decode.cache import KeyValues
from moc.ops import rms_norm, swiglu

NORM_EPS = 1e-5
ROPE_THETA = 100_000.0  # as published (arXiv 2603.21096)


class RMSNorm(nn.Module):
    """Root-mean-square norm with a learned scale, computed in float32."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x_D: Tensor) -> Tensor:
        # autocast would hand bfloat16 in: the sum of squares needs the mantissa
        wide = x_D.dtype if x_D.dtype == torch.float64 else torch.float32
        normed = rms_norm(x_D.to(wide), self.weight.to(wide), NORM_EPS)
        return normed.to(x_D.dtype)


def rotary_tables(position_L: Tensor, head_dim: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines for positions (L,) or (B, L): each (..., E / 2), at least float32."""
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    steps_E = torch.arange(0, head_dim, 2, device=like.device, dtype=dtype) / head_dim
    angles_LE = position_L[..., None].to(dtype) * ROPE_THETA**-steps_E
    return angles_LE.cos(), angles_LE.sin()


def rotate(x_BLHE: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary embedding, half-split pairs (i, i + E/2), in the tables' precision."""
    cos, sin = (table.unsqueeze(-2) for table in tables)
    first, second = x_BLHE.to(cos.dtype).chunk(2, dim=-1)
    rotated = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
    return rotated.to(x_BLHE.dtype)


class FusedLinear(nn.Linear):
    """Bias-free linear maps of one input as a single product; their outputs, in order.

    Args:
        parts: output widths by name. ``build_model`` draws each part as a map of its own.
    """

    def __init__(self, dim: int, parts: dict[str, int]) -> None:
        super().__init__(dim, sum(parts.values()), bias=False)
        self.parts = parts

    def forward(self, x_D: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        return self.together(x_D).split(list(self.parts.values()), dim=-1)

    def together(self, x_D: Tensor) -> Tensor:
        """The outputs side by side."""
        return super().forward(x_D)


class SelfAttention(nn.Module):
    """Causal grouped-query attention with rotary positions."""

    def __init__(self, dim: int, num_heads: int, num_kv_heads: int) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads, self.head_dim = num_heads, num_kv_heads, dim // num_heads
        kv_dim = num_kv_heads * self.head_dim
        self.qkv = FusedLinear(dim, {"q": num_heads * self.head_dim, "k": kv_dim, "v": kv_dim})
        self.out = nn.Linear(num_heads * self.head_dim, dim, bias=False)

    def forward(
        self, x_BLD: Tensor, rotary: tuple[Tensor, Tensor], state: KeyValues | None = None
    ) -> Tensor:
        q_BLX, k_BLX, v_BLX = self.qkv(x_BLD)
        q_BLHE = rotate(q_BLX.unflatten(-1, (self.num_heads, self.head_dim)), rotary)
        k_BLJE = rotate(k_BLX.unflatten(-1, (self.num_kv_heads, self.head_dim)), rotary)
        # a copy, or the backward pass would keep all of the product for its sake
        v_BLJE = v_BLX.contiguous().unflatten(-1, (self.num_kv_heads, self.head_dim))
        mask = None
        if state is not None:
            k_BLJE, v_BLJE, mask = state.extend(k_BLJE, v_BLJE)
        out_BHLE = F.scaled_dot_product_attention(
            q_BLHE.transpose(1, 2),
            k_BLJE.transpose(1, 2),
            v_BLJE.transpose(1, 2),
            attn_mask=mask,
            is_causal=mask is None and x_BLD.shape[1] > 1,
            enable_gqa=self.num_heads != self.num_kv_heads,
        )
        return self.out(out_BHLE.transpose(1, 2).flatten(2))


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x))."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.gate_up = FusedLinear(dim, {"gate": hidden_dim, "up": hidden_dim})
        self.down = nn.Linear(hidden_dim, dim, bias=False)

    def forward(self, x_BLD: Tensor) -> Tensor:
        return self.down(swiglu(self.gate_up.together(x_BLD)))
