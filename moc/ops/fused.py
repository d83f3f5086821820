"""Chapters copied to the queries of their group, and PyTorch's fused attention over the copies.

For long groups, on any device. Where keys are weighted the weight rounds 16-bit copies of them: at
scores of 30 a chapter's share is off by up to 3% of the whole. Not on a CPU, which multiplies
16-bit numbers more slowly than the float32 copies that it gets.

X groups, J key/value heads, Y queries per group and key/value head,
E head dim, N chapters per group, U chapters, T tokens per chapter, I = N * T.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from moc.ops.groups import over_groups
from moc.ops.mixing import MIXINGS, Mixing
from moc.ops.precision import keys_and_values_in, wide_dtype
from moc.ops.rows import take
from moc.ops.shapes import BIAS_WIDTH


def supports(mixing: Mixing) -> bool:
    """A softmax for each chapter must be that of plain scores."""
    return mixing.plain_scores or not mixing.per_chapter


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
    """``routed_attention``, where ``supports``."""
    dtype = _copied_dtype(q_BLHE)
    out_BLHE = over_groups(
        _attend,
        q_BLHE.to(dtype),
        *keys_and_values_in(dtype, k_UTJE, v_UTJE),
        row_BGN,
        weight_BGN,
        mixing=MIXINGS[mixing],
        group_tokens=group_tokens,
        scale=scale,
    )
    return out_BLHE.to(q_BLHE.dtype)


def _copied_dtype(q_BLHE: Tensor) -> torch.dtype:
    return wide_dtype(q_BLHE.dtype) if q_BLHE.device.type == "cpu" else q_BLHE.dtype


def _attend(
    q_XJYE: Tensor,
    k_UTJE: Tensor,
    v_UTJE: Tensor,
    row_XN: Tensor,
    weight_XN: Tensor,
    mixing: Mixing,
    scale: float,
) -> Tensor:
    """One softmax over a group's chapters: (X, J, Y, E)."""
    # linear maps commute with the weight, so a chapter is projected once and weighted here
    of_k, of_v = (
        x.of(weight_XN) if x else None for x in (mixing.score_factor, mixing.value_factor)
    )
    k_XJIE = take(k_UTJE, row_XN, of_k).flatten(1, 2).transpose(1, 2)
    v_XJIE = k_XJIE
    if v_UTJE is not k_UTJE or mixing.score_factor is not mixing.value_factor or mixing.score_bias:
        v_XJIE = take(v_UTJE, row_XN, of_v).flatten(1, 2).transpose(1, 2)
    if mixing.score_bias is None:
        return F.scaled_dot_product_attention(q_XJYE, k_XJIE, v_XJIE, scale=scale)
    # a bias that needs a gradient has no fused kernel, so it comes in as a column of the keys
    bias_XI = (mixing.score_bias.of(weight_XN) / scale).repeat_interleave(k_UTJE.shape[1], dim=1)
    bias_XJI1 = bias_XI[:, None, :, None].expand(-1, k_XJIE.shape[1], -1, -1)
    width = q_XJYE.shape[-1]
    q_XJYE = torch.cat((q_XJYE, torch.ones_like(q_XJYE[..., :1])), dim=-1)
    k_XJIE = torch.cat((k_XJIE, bias_XJI1.to(k_XJIE.dtype)), dim=-1)
    q_XJYE, k_XJIE = (F.pad(x, (0, BIAS_WIDTH - 1)) for x in (q_XJYE, k_XJIE))
    v_XJIE = F.pad(v_XJIE, (0, BIAS_WIDTH))
    return F.scaled_dot_product_attention(q_XJYE, k_XJIE, v_XJIE, scale=scale)[..., :width]
