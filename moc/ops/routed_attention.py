"""Routed attention over projected chapters.

B batch, L length, H heads, J key/value heads, R = H / J, E head dim, U distinct chapters, T tokens
per chapter, G routing groups per sequence, W positions per group (the last group may be shorter),
N chapters read per group, X = B * G groups of the batch.

Three ways to mix the chapters of a group, given weights w_n that sum to 1:

- ``joint``: one softmax over all N * T tokens, keys and values scaled by w_n (the published one)
- ``per_chapter``: one softmax over T tokens for each chapter, outputs summed with w_n
- ``log_bias``: one softmax over all tokens, log w_n added to the scores, values unscaled

``unweighted`` is one softmax that ignores the weights. ``moc.ops.reference`` is the oracle.

On a GPU, sequences of several groups go through the kernels of ``moc.ops.triton_attention``.
Otherwise long groups copy their chapters to the queries and use fused attention. Short ones (a
token each) would copy a chapter for a handful of queries, so queries meet their chapters in
``moc.ops.grouped_attention``; ``moc.ops.shapes`` chooses.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from moc.ops.bank_rows import take, take_chapters
from moc.ops.bank_shards import is_sharded
from moc.ops.gathered_attention import gathered_attention
from moc.ops.grouped_attention import grouped_attention, grouped_bank_attention
from moc.ops.grouped_passes import finite_log
from moc.ops.norm import rms_norm
from moc.ops.shapes import BIAS_WIDTH, moves_queries
from moc.ops.triton_attention import is_supported, triton_routed_attention

MASS_GROUPS = 32


def routed_attention(
    q_BLHE: Tensor,
    k_UTJE: Tensor,
    v_UTJE: Tensor,
    row_BGN: Tensor,
    weight_BGN: Tensor,
    *,
    mixing: str,
    group_tokens: int,
    scale: float | None = None,
) -> Tensor:
    """Outputs (B, L, H, E): position l reads the chapters ``row_BGN[b, l // group_tokens]``.

    Args:
        k_UTJE, v_UTJE: may be one object, which saves half of the copies.
        scale: of the scores; None: 1 / sqrt(E).

    Raises:
        ValueError: for an unknown mixing, or groups that do not cover the sequence.
    """
    if mixing not in ("joint", "per_chapter", "log_bias", "unweighted"):
        raise ValueError(f"mixing {mixing!r} is none of joint, per_chapter, log_bias")
    batch, length = q_BLHE.shape[:2]
    num_groups = row_BGN.shape[1]
    if num_groups != -(-length // group_tokens):
        raise ValueError(
            f"{num_groups} routing groups of {group_tokens} do not cover {length} positions"
        )
    if scale is None:
        scale = q_BLHE.shape[-1] ** -0.5
    if q_BLHE.is_cuda and num_groups > 1 and is_supported(q_BLHE, k_UTJE):
        return triton_routed_attention(
            q_BLHE,
            k_UTJE,
            v_UTJE,
            row_BGN,
            weight_BGN,
            mixing=mixing,
            group_tokens=group_tokens,
            scale=scale,
        )
    if moves_queries(batch, length, num_groups, k_UTJE.shape[1]):
        group_L = torch.arange(length, device=q_BLHE.device) // group_tokens
        out_XHE = grouped_attention(
            q_BLHE.flatten(0, 1),
            k_UTJE,
            None if v_UTJE is k_UTJE else v_UTJE,
            row_BGN[:, group_L].flatten(0, 1),
            weight_BGN[:, group_L].flatten(0, 1),
            mixing,
            scale,
        )
        return out_XHE.view(q_BLHE.shape)
    missing = num_groups * group_tokens - length
    padded_BLHE = F.pad(q_BLHE, (0, 0, 0, 0, 0, missing)) if missing else q_BLHE
    q_XHWE = padded_BLHE.unflatten(1, (num_groups, -1)).flatten(0, 1).transpose(1, 2)
    out_XHWE = _chapters_to_queries(
        q_XHWE, k_UTJE, v_UTJE, row_BGN.flatten(0, 1), weight_BGN.flatten(0, 1), mixing, scale
    )
    out_BLHE = out_XHWE.transpose(1, 2).reshape(padded_BLHE.shape)
    return out_BLHE[:, :length] if missing else out_BLHE


def absorbed_attention(
    q_BLHM: Tensor,
    bank_CTM: Tensor,
    chapter_U: Tensor,
    row_BGN: Tensor,
    weight_BGN: Tensor,
    *,
    mixing: str,
    group_tokens: int,
    scale: float,
    norm_eps: float | None,
    tap_UTM: Tensor | None = None,
) -> Tensor:
    """``routed_attention`` to the tokens of a bank themselves, keys and values for every head.

    Args:
        chapter_U: the chapters of the bank that ``row_BGN`` counts.
        norm_eps: tokens are RMS-normalised with it; None: taken as they are.
        tap_UTM: see ``moc.ops.bank_rows``.

    Returns:
        (B, L, H, M).
    """
    batch, length = q_BLHM.shape[:2]
    for_bank = tap_UTM is None and torch.is_grad_enabled() and bank_CTM.requires_grad
    eager = q_BLHM.device.type == "cpu" and not torch.compiler.is_compiling()
    if (
        not (eager and moves_queries(batch, length, row_BGN.shape[1], bank_CTM.shape[1]))
        or for_bank
        or is_sharded(bank_CTM)
    ):
        tokens_UTM = take_chapters(bank_CTM, chapter_U, tap_UTM)
        if norm_eps is not None:
            tokens_UTM = rms_norm(tokens_UTM, None, norm_eps)
        m_UT1M = tokens_UTM.to(q_BLHM.dtype).unsqueeze(2)
        return routed_attention(
            q_BLHM,
            m_UT1M,
            m_UT1M,
            row_BGN,
            weight_BGN,
            mixing=mixing,
            group_tokens=group_tokens,
            scale=scale,
        )
    group_L = torch.arange(length, device=q_BLHM.device) // group_tokens
    out_XHM = grouped_bank_attention(
        q_BLHM.flatten(0, 1),
        bank_CTM,
        chapter_U,
        tap_UTM,
        row_BGN[:, group_L].flatten(0, 1),
        weight_BGN[:, group_L].flatten(0, 1),
        mixing,
        scale,
        norm_eps,
    )
    return out_XHM.view(q_BLHM.shape)


def _chapters_to_queries(
    q_XHWE: Tensor,
    k_UTJE: Tensor,
    v_UTJE: Tensor,
    row_XN: Tensor,
    weight_XN: Tensor,
    mixing: str,
    scale: float,
) -> Tensor:
    """Fused attention of each group over copies of its chapters: (X, H, W, E)."""
    num_read, num_kv_heads = row_XN.shape[1], k_UTJE.shape[2]
    # queries of heads that share keys stand side by side: there is no order to keep
    q_XJYE = q_XHWE.reshape(len(q_XHWE), num_kv_heads, -1, q_XHWE.shape[-1])
    if mixing == "per_chapter":
        q_ZJYE = q_XJYE.repeat_interleave(num_read, dim=0)
        out_ZJYE = _attend(q_ZJYE, k_UTJE, v_UTJE, row_XN.reshape(-1, 1), None, scale)
        out_XNJYE = out_ZJYE.unflatten(0, (-1, num_read))
        return torch.einsum("xnjye,xn->xjye", out_XNJYE, weight_XN).view(q_XHWE.shape)
    if mixing == "log_bias":
        return _attend_with_bias(q_XJYE, k_UTJE, v_UTJE, row_XN, weight_XN, scale).view(
            q_XHWE.shape
        )
    # linear maps commute with the weight, so a chapter is projected once and weighted here
    weight = weight_XN if mixing == "joint" else None
    return _attend(q_XJYE, k_UTJE, v_UTJE, row_XN, weight, scale).view(q_XHWE.shape)


def _attend(
    q_XJYE: Tensor,
    k_UTJE: Tensor,
    v_UTJE: Tensor,
    row_XN: Tensor,
    weight_XN: Tensor | None,
    scale: float,
) -> Tensor:
    """One softmax over a group's chapters, keys and values times ``weight_XN``: (X, J, Y, E)."""
    if q_XJYE.device.type == "cpu" and not torch.compiler.is_compiling():
        return gathered_attention(q_XJYE, k_UTJE, v_UTJE, row_XN, weight_XN, scale)
    k_XJIE = take(k_UTJE, row_XN, weight_XN).flatten(1, 2).transpose(1, 2)
    v_XJIE = k_XJIE
    if v_UTJE is not k_UTJE:
        v_XJIE = take(v_UTJE, row_XN, weight_XN).flatten(1, 2).transpose(1, 2)
    return F.scaled_dot_product_attention(q_XJYE, k_XJIE, v_XJIE, scale=scale)


def _attend_with_bias(
    q_XJYE: Tensor,
    k_UTJE: Tensor,
    v_UTJE: Tensor,
    row_XN: Tensor,
    weight_XN: Tensor,
    scale: float,
) -> Tensor:
    """One softmax over a group's chapters, log weights added to the scores: (X, J, Y, E).

    A bias that needs a gradient has no fused kernel, so it comes in as a column of the keys.
    """
    num_tokens, width = k_UTJE.shape[1], q_XJYE.shape[-1]
    k_XJIE, v_XJIE = (take(x, row_XN).flatten(1, 2).transpose(1, 2) for x in (k_UTJE, v_UTJE))
    bias_XI = (finite_log(weight_XN) / scale).repeat_interleave(num_tokens, dim=1)
    bias_XJI1 = bias_XI[:, None, :, None].expand(-1, k_XJIE.shape[1], -1, -1)
    q_XJYE = torch.cat((q_XJYE, torch.ones_like(q_XJYE[..., :1])), dim=-1)
    k_XJIE = torch.cat((k_XJIE, bias_XJI1.to(k_XJIE.dtype)), dim=-1)
    q_XJYE, k_XJIE = (F.pad(x, (0, BIAS_WIDTH - 1)) for x in (q_XJYE, k_XJIE))
    v_XJIE = F.pad(v_XJIE, (0, BIAS_WIDTH))
    return F.scaled_dot_product_attention(q_XJYE, k_XJIE, v_XJIE, scale=scale)[..., :width]


@torch.no_grad()
def shared_attention_mass(
    q_BLHE: Tensor,
    k_UTJE: Tensor,
    row_BGN: Tensor,
    weight_BGN: Tensor,
    num_shared: int,
    *,
    mixing: str,
    group_tokens: int,
    scale: float | None = None,
) -> Tensor:
    """Share of the attention that falls on the shared chapters, mean over positions and heads.

    For ``per_chapter`` this is their mixing weight. Otherwise it is measured on ``MASS_GROUPS``
    groups, evenly spaced over the batch: every group needs a copy of its chapters. Scalar float32.
    """
    length = q_BLHE.shape[1]
    if scale is None:
        scale = q_BLHE.shape[-1] ** -0.5
    group_L = torch.arange(length, device=q_BLHE.device) // group_tokens
    if mixing == "per_chapter":
        return weight_BGN[:, group_L, :num_shared].float().sum(-1).mean()
    num_groups, num_read = row_BGN.shape[1:]
    missing = num_groups * group_tokens - length
    q_XWHE = F.pad(q_BLHE, (0, 0, 0, 0, 0, missing)).unflatten(1, (num_groups, -1)).flatten(0, 1)
    real_GW = torch.arange(num_groups * group_tokens, device=q_BLHE.device) < length
    real_XW = real_GW.view(num_groups, -1).repeat(len(q_BLHE), 1)
    taken_X = torch.arange(len(q_XWHE), device=q_BLHE.device)
    taken_X = taken_X[:: -(-len(taken_X) // MASS_GROUPS)]
    q_XWHE, real_XW = q_XWHE[taken_X].float(), real_XW[taken_X]
    k_XNTJE = k_UTJE[row_BGN.flatten(0, 1)[taken_X]].float()
    k_XNTHE = k_XNTJE.repeat_interleave(q_XWHE.shape[2] // k_XNTJE.shape[3], dim=3)
    weight_XN = weight_BGN.flatten(0, 1)[taken_X].float()
    scores_XHWNT = torch.einsum("xwhe,xnthe->xhwnt", q_XWHE, k_XNTHE) * scale
    if mixing == "joint":
        scores_XHWNT = scores_XHWNT * weight_XN[:, None, None, :, None]
    elif mixing == "log_bias":
        scores_XHWNT = scores_XHWNT + finite_log(weight_XN)[:, None, None, :, None]
    mass_XHWN = scores_XHWNT.flatten(-2).softmax(-1).unflatten(-1, (num_read, -1)).sum(-1)
    shared_XW = mass_XHWN[..., :num_shared].sum(-1).mean(1)
    return (shared_XW * real_XW).sum() / real_XW.sum()
