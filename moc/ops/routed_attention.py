"""Routed attention over projected chapters, with fused scaled-dot-product attention.

B batch, L length, H heads, J key/value heads, E head dim, U distinct chapters, T tokens per
chapter, G routing groups per sequence (equal, consecutive), W = L / G positions per group,
N chapters read, X = B * G.

Three ways to mix the chapters of a group, given weights w_n that sum to 1:

- ``joint``: one softmax over all N * T tokens, keys and values scaled by w_n (the published one)
- ``per_chapter``: one softmax over T tokens for each chapter, outputs summed with w_n
- ``log_bias``: one softmax over all tokens, log w_n added to the scores, values unscaled

``unweighted`` is one softmax that ignores the weights. ``moc.ops.reference`` is the oracle.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def routed_attention(
    q_BLHE: Tensor,
    k_UTJE: Tensor,
    v_UTJE: Tensor,
    row_BGN: Tensor,
    weight_BGN: Tensor,
    *,
    mixing: str,
) -> Tensor:
    """Outputs (B, L, H, E): position l of group g reads the chapters ``row_BGN[b, g]``.

    Raises:
        ValueError: for an unknown mixing, or a length that the groups do not divide.
    """
    length, num_heads = q_BLHE.shape[1:3]
    num_groups, num_read = row_BGN.shape[1:]
    if length % num_groups:
        raise ValueError(f"{num_groups} routing groups do not divide {length} positions")
    gqa = num_heads != k_UTJE.shape[2]
    q_XHWE = q_BLHE.unflatten(1, (num_groups, -1)).flatten(0, 1).transpose(1, 2)
    k_XNTJE = _take(k_UTJE, row_BGN)
    v_XNTJE = _take(v_UTJE, row_BGN)
    weight_XN = weight_BGN.flatten(0, 1)
    bias = None
    match mixing:
        case "per_chapter":
            q_ZHWE = q_XHWE.repeat_interleave(num_read, dim=0)
            k_ZJTE = k_XNTJE.flatten(0, 1).transpose(1, 2)
            v_ZJTE = v_XNTJE.flatten(0, 1).transpose(1, 2)
            out_ZHWE = F.scaled_dot_product_attention(q_ZHWE, k_ZJTE, v_ZJTE, enable_gqa=gqa)
            out_XNHWE = out_ZHWE.unflatten(0, (-1, num_read))
            out_XHWE = torch.einsum("xnhwe,xn->xhwe", out_XNHWE, weight_XN)
        case "joint" | "log_bias" | "unweighted":
            if mixing == "joint":
                # linear maps commute with the weight, so a chapter is projected once and reused
                k_XNTJE = k_XNTJE * weight_XN[..., None, None, None]
                v_XNTJE = v_XNTJE * weight_XN[..., None, None, None]
            elif mixing == "log_bias":
                bias = _finite_log(weight_XN).repeat_interleave(k_XNTJE.shape[2], dim=1)[
                    :, None, None
                ]
            k_XJYE = k_XNTJE.flatten(1, 2).transpose(1, 2)
            v_XJYE = v_XNTJE.flatten(1, 2).transpose(1, 2)
            out_XHWE = F.scaled_dot_product_attention(
                q_XHWE, k_XJYE, v_XJYE, attn_mask=bias, enable_gqa=gqa
            )
        case _:
            raise ValueError(f"mixing {mixing!r} is none of joint, per_chapter, log_bias")
    return out_XHWE.transpose(1, 2).reshape(q_BLHE.shape)


@torch.no_grad()
def shared_attention_mass(
    q_BLHE: Tensor,
    k_UTJE: Tensor,
    row_BGN: Tensor,
    weight_BGN: Tensor,
    num_shared: int,
    *,
    mixing: str,
) -> Tensor:
    """Share of the attention that falls on the shared chapters, mean over positions and heads.

    For ``per_chapter`` this is their mixing weight. Scalar float32.
    """
    if mixing == "per_chapter":
        return weight_BGN[..., :num_shared].float().sum(-1).mean()
    num_groups, num_read = row_BGN.shape[1:]
    q_XWHE = q_BLHE.unflatten(1, (num_groups, -1)).flatten(0, 1).float()
    k_XNTJE = _take(k_UTJE, row_BGN).float()
    k_XNTHE = k_XNTJE.repeat_interleave(q_XWHE.shape[2] // k_XNTJE.shape[3], dim=3)
    weight_XN = weight_BGN.flatten(0, 1).float()
    scores_XHWNT = torch.einsum("xwhe,xnthe->xhwnt", q_XWHE, k_XNTHE) * q_XWHE.shape[-1] ** -0.5
    if mixing == "joint":
        scores_XHWNT = scores_XHWNT * weight_XN[:, None, None, :, None]
    elif mixing == "log_bias":
        scores_XHWNT = scores_XHWNT + _finite_log(weight_XN)[:, None, None, :, None]
    mass_XHWN = scores_XHWNT.flatten(-2).softmax(-1).unflatten(-1, (num_read, -1)).sum(-1)
    return mass_XHWN[..., :num_shared].sum(-1).mean()


def _take(chapters_UTJE: Tensor, row_BGN: Tensor) -> Tensor:
    """Each group's chapters: (X, N, T, J, E)."""
    taken = chapters_UTJE.index_select(0, row_BGN.flatten())
    return taken.unflatten(0, (-1, row_BGN.shape[-1]))


def _finite_log(weight_XN: Tensor) -> Tensor:
    """A routed weight can underflow to 0, where log's gradient is infinite and 0 * inf is NaN."""
    return weight_XN.clamp(min=torch.finfo(weight_XN.dtype).tiny).log()
