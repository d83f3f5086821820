"""Attention of a single position per row to copies of its chapters that are kept between calls.

B batch, H heads, J key/value heads, R = H / J, E head dim, N chapters read, T tokens per chapter,
I = N * T.
"""

from __future__ import annotations

from torch import Tensor

from moc.ops.mixing import MIXINGS, value_shares
from moc.ops.precision import wide_dtype, without_autocast


@without_autocast
def kept_attention(
    q_BHE: Tensor,
    k_BJIE: Tensor,
    v_BJIE: Tensor,
    weight_BN: Tensor,
    *,
    mixing: str,
    scale: float,
) -> Tensor:
    """Outputs (B, H, E), mixed as by ``routed_attention``; the copies are without weights.

    With one query the scores are a row a head: weights are applied to these, and nothing is fused.
    """
    q_BJRE = q_BHE.unflatten(1, (k_BJIE.shape[1], -1))
    wide = wide_dtype(q_BHE.dtype)
    raw_BJRI = scale * q_BJRE.to(wide) @ k_BJIE.to(wide).transpose(-1, -2)
    raw_BJRNT = raw_BJRI.unflatten(-1, (weight_BN.shape[1], -1))
    weight_B11N1 = weight_BN.to(wide)[:, None, None, :, None]
    share_BJRI = value_shares(raw_BJRNT, weight_B11N1, MIXINGS[mixing]).flatten(-2)
    return (share_BJRI.to(v_BJIE.dtype) @ v_BJIE).flatten(1, 2)
