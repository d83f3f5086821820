"""What ways have in common that bring a group's chapters to its queries.

B batch, L length, H heads, J key/value heads, E head dim, U chapters, T tokens per chapter, G
groups per sequence, W positions per group, X = B * G groups, N chapters per group, Y queries per
group and key/value head, Z groups that each read a single chapter.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from moc.ops.mixing import MIXINGS, Mixing
from moc.ops.precision import wide_dtype

# (q_XJYE, k_UTJE, v_UTJE, row_XN, weight_XN, mixing, scale) to outputs (X, J, Y, E), for a mixing
# with one softmax over all of a group's tokens
GroupAttention = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Mixing, float], Tensor]


def over_groups(
    attend: GroupAttention,
    q_BLHE: Tensor,
    k_UTJE: Tensor,
    v_UTJE: Tensor,
    row_BGN: Tensor,
    weight_BGN: Tensor,
    *,
    mixing: Mixing,
    group_tokens: int,
    scale: float,
) -> Tensor:
    """``routed_attention``, with ``attend`` for the queries of each group.

    A softmax for each chapter is that of groups which read a single chapter, unweighted.
    """
    length, num_read = q_BLHE.shape[1], row_BGN.shape[2]
    q_XJYE = split_groups(q_BLHE, row_BGN.shape[1], group_tokens, k_UTJE.shape[2])
    row_XN, weight_XN = row_BGN.flatten(0, 1), weight_BGN.flatten(0, 1)
    if not mixing.per_chapter:
        out_XJYE = attend(q_XJYE, k_UTJE, v_UTJE, row_XN, weight_XN, mixing, scale)
    else:
        q_ZJYE = q_XJYE.repeat_interleave(num_read, dim=0)
        row_Z1, weight_Z1 = row_XN.reshape(-1, 1), weight_XN.reshape(-1, 1)
        plain = MIXINGS["unweighted"]
        out_ZJYE = attend(q_ZJYE, k_UTJE, v_UTJE, row_Z1, weight_Z1, plain, scale)
        wide = wide_dtype(q_BLHE.dtype)
        out_XNJYE = out_ZJYE.unflatten(0, (-1, num_read))
        if mixing.value_factor:
            factor_XN = mixing.value_factor.of(weight_XN.to(wide))
            out_XJYE = torch.einsum("xnjye,xn->xjye", out_XNJYE.to(wide), factor_XN)
            out_XJYE = out_XJYE.to(q_BLHE.dtype)
        else:
            out_XJYE = out_XNJYE.sum(1)
    return join_groups(out_XJYE, q_BLHE.shape[2], group_tokens, len(q_BLHE), length)


def split_groups(q_BLHE: Tensor, num_groups: int, group_tokens: int, num_kv_heads: int) -> Tensor:
    """Queries by group and key/value head, (X, J, Y, E): those of heads that share keys stand side
    by side, for there is no order to keep. A short last group is padded."""
    missing = num_groups * group_tokens - q_BLHE.shape[1]
    padded_BLHE = F.pad(q_BLHE, (0, 0, 0, 0, 0, missing)) if missing else q_BLHE
    q_XHWE = padded_BLHE.unflatten(1, (num_groups, -1)).flatten(0, 1).transpose(1, 2)
    return q_XHWE.reshape(len(q_XHWE), num_kv_heads, -1, q_XHWE.shape[-1])


def join_groups(
    out_XJYE: Tensor, num_heads: int, group_tokens: int, batch: int, length: int
) -> Tensor:
    """The way back: (B, L, H, E)."""
    out_XHWE = out_XJYE.view(len(out_XJYE), num_heads, group_tokens, out_XJYE.shape[-1])
    out_BLHE = out_XHWE.transpose(1, 2).reshape(batch, -1, num_heads, out_XJYE.shape[-1])
    return out_BLHE if out_BLHE.shape[1] == length else out_BLHE[:, :length]
