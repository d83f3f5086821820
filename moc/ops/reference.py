"""The oracle of every fast path: routed attention as a loop over positions, nothing fused.

Letters as in ``moc.ops.routed_attention``. Slow on purpose; run it in float64.
"""

from __future__ import annotations

import torch
from torch import Tensor


def reference_attention(
    q_BLHE: Tensor,
    k_UTJE: Tensor,
    v_UTJE: Tensor,
    row_BGN: Tensor,
    weight_BGN: Tensor,
    *,
    mixing: str,
    group_tokens: int,
) -> Tensor:
    """Same arguments and result as ``routed_attention``."""
    batch, length, num_heads, head_dim = q_BLHE.shape
    per_kv_head = num_heads // k_UTJE.shape[2]
    out = torch.zeros_like(q_BLHE)
    for b in range(batch):
        for position in range(length):
            rows_N = row_BGN[b, position // group_tokens]
            weight_N = weight_BGN[b, position // group_tokens]
            for head in range(num_heads):
                q_E = q_BLHE[b, position, head]
                k_NTE = k_UTJE[rows_N, :, head // per_kv_head]
                v_NTE = v_UTJE[rows_N, :, head // per_kv_head]
                scores_NT = k_NTE @ q_E / head_dim**0.5
                if mixing == "per_chapter":
                    out_NE = torch.einsum("nt,nte->ne", scores_NT.softmax(-1), v_NTE)
                    out[b, position, head] = weight_N @ out_NE
                    continue
                if mixing == "joint":
                    scores_NT, v_NTE = (
                        scores_NT * weight_N[:, None],
                        v_NTE * weight_N[:, None, None],
                    )
                elif mixing == "log_bias":
                    scores_NT = scores_NT + weight_N.log()[:, None]
                share_Y = scores_NT.flatten().softmax(-1)
                out[b, position, head] = share_Y @ v_NTE.flatten(0, 1)
    return out
