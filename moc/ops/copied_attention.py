"""Attention of a single position per row to copies of its chapters that are kept between calls.

B batch, H heads, J key/value heads, R = H / J, E head dim, N chapters read, T tokens per chapter,
I = N * T.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moc.ops.grouped_passes import finite_log


def copied_attention(
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
    num_read = weight_BN.shape[1]
    q_BJRE = q_BHE.unflatten(1, (k_BJIE.shape[1], -1))
    wide = torch.promote_types(q_BHE.dtype, torch.float32)
    scores_BJRI = (scale * q_BJRE @ k_BJIE.transpose(-1, -2)).to(wide)
    scores_BJRNT = scores_BJRI.unflatten(-1, (num_read, -1))
    weight_B11N1 = weight_BN.to(wide)[:, None, None, :, None]
    match mixing:
        case "joint":
            joint_BJRI = (scores_BJRNT * weight_B11N1).flatten(-2).softmax(-1)
            probs_BJRI = (joint_BJRI.view_as(scores_BJRNT) * weight_B11N1).flatten(-2)
        case "per_chapter":
            probs_BJRI = (scores_BJRNT.softmax(-1) * weight_B11N1).flatten(-2)
        case _:
            assert mixing == "log_bias"
            probs_BJRI = (scores_BJRNT + finite_log(weight_B11N1)).flatten(-2).softmax(-1)
    return (probs_BJRI.to(v_BJIE.dtype) @ v_BJIE).flatten(1, 2)
