"""Routed attention as its formulas say it: every mixing, on any device, nothing fused.

The way of last resort, and what a new mixing trains with before a faster way knows it. Scores of
all groups exist at once. X groups, J key/value heads, Y queries per group and key/value head, E
head dim, N chapters per group, T tokens per chapter.
"""

from __future__ import annotations

import torch
from torch import Tensor

from moc.ops.groups import join_groups, split_groups
from moc.ops.mixing import MIXINGS, value_shares
from moc.ops.precision import wide_dtype


def attend(
    q_BLHE: Tensor,
    k_UTJE: Tensor,
    v_UTJE: Tensor,
    row_BGN: Tensor,
    weight_BGN: Tensor,
    *,
    mixing: str,
    group_tokens: int,
    scale: float,
) -> Tensor:
    """``routed_attention``."""
    batch, length, num_heads, _ = q_BLHE.shape
    q_XJYE = split_groups(q_BLHE, row_BGN.shape[1], group_tokens, k_UTJE.shape[2])
    row_XN, weight_X11N1 = row_BGN.flatten(0, 1), weight_BGN.flatten(0, 1)[:, None, None, :, None]
    wide = wide_dtype(q_BLHE.dtype)
    k_XNTJE, v_XNTJE = (x_UTJE[row_XN].to(wide) for x_UTJE in (k_UTJE, v_UTJE))
    raw_XJYNT = torch.einsum("xjye,xntje->xjynt", q_XJYE.to(wide), k_XNTJE) * scale
    share_XJYNT = value_shares(raw_XJYNT, weight_X11N1.to(wide), MIXINGS[mixing])
    out_XJYE = torch.einsum("xjynt,xntje->xjye", share_XJYNT, v_XNTJE).to(q_BLHE.dtype)
    return join_groups(out_XJYE.contiguous(), num_heads, group_tokens, batch, length)
