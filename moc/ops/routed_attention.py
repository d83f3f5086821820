"""Routed attention over projected chapters.

B batch, L length, H heads, J key/value heads, R = H / J, E head dim, U distinct chapters, T tokens
per chapter, G routing groups per sequence, W positions per group (the last group may be shorter),
N chapters read per group, X = B * G groups of the batch, P = B * L * N pairs of a position and a
chapter, Z blocks of Q pairs.

Three ways to mix the chapters of a group, given weights w_n that sum to 1:

- ``joint``: one softmax over all N * T tokens, keys and values scaled by w_n (the published one)
- ``per_chapter``: one softmax over T tokens for each chapter, outputs summed with w_n
- ``log_bias``: one softmax over all tokens, log w_n added to the scores, values unscaled

``unweighted`` is one softmax that ignores the weights. ``moc.ops.reference`` is the oracle.

Long groups copy their chapters to the queries and use fused attention. Short ones (a token each)
would copy a chapter for a handful of queries, so the queries are sorted by chapter instead, as in a
mixture of experts; ``moc.ops.shapes`` chooses.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from moc.ops.shapes import moves_queries, query_blocks

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
) -> Tensor:
    """Outputs (B, L, H, E): position l reads the chapters ``row_BGN[b, l // group_tokens]``.

    Raises:
        ValueError: for an unknown mixing, or groups that do not cover the sequence.
    """
    if mixing not in ("joint", "per_chapter", "log_bias", "unweighted"):
        raise ValueError(f"mixing {mixing!r} is none of joint, per_chapter, log_bias")
    batch, length = q_BLHE.shape[:2]
    num_groups, num_read = row_BGN.shape[1:]
    if num_groups != -(-length // group_tokens):
        raise ValueError(
            f"{num_groups} routing groups of {group_tokens} do not cover {length} positions"
        )
    num_chapters, num_tokens = k_UTJE.shape[:2]
    if moves_queries(batch, length, num_groups, num_read, num_tokens, num_chapters):
        group_L = torch.arange(length, device=q_BLHE.device) // group_tokens
        row_BLN, weight_BLN = row_BGN[:, group_L], weight_BGN[:, group_L]
        out_XHE = _queries_to_chapters(
            q_BLHE.flatten(0, 1),
            k_UTJE,
            v_UTJE,
            row_BLN.flatten(0, 1),
            weight_BLN.flatten(0, 1),
            mixing,
        )
        return out_XHE.view(q_BLHE.shape)
    padded_BLHE = F.pad(q_BLHE, (0, 0, 0, 0, 0, num_groups * group_tokens - length))
    q_XHWE = padded_BLHE.unflatten(1, (num_groups, -1)).flatten(0, 1).transpose(1, 2)
    out_XHWE = _chapters_to_queries(
        q_XHWE, k_UTJE, v_UTJE, row_BGN.flatten(0, 1), weight_BGN.flatten(0, 1), mixing
    )
    return out_XHWE.transpose(1, 2).reshape(padded_BLHE.shape)[:, :length]


def _chapters_to_queries(
    q_XHWE: Tensor, k_UTJE: Tensor, v_UTJE: Tensor, row_XN: Tensor, weight_XN: Tensor, mixing: str
) -> Tensor:
    """Fused attention of each group over copies of its chapters: (X, H, W, E)."""
    num_read = row_XN.shape[1]
    gqa = q_XHWE.shape[1] != k_UTJE.shape[2]
    k_XNTJE, v_XNTJE = _take(k_UTJE, row_XN), _take(v_UTJE, row_XN)
    if mixing == "per_chapter":
        q_ZHWE = q_XHWE.repeat_interleave(num_read, dim=0)
        k_ZJTE = k_XNTJE.flatten(0, 1).transpose(1, 2)
        v_ZJTE = v_XNTJE.flatten(0, 1).transpose(1, 2)
        out_ZHWE = F.scaled_dot_product_attention(q_ZHWE, k_ZJTE, v_ZJTE, enable_gqa=gqa)
        return torch.einsum("xnhwe,xn->xhwe", out_ZHWE.unflatten(0, (-1, num_read)), weight_XN)
    bias = None
    if mixing == "joint":
        # linear maps commute with the weight, so a chapter is projected once and reused
        k_XNTJE = k_XNTJE * weight_XN[..., None, None, None]
        v_XNTJE = v_XNTJE * weight_XN[..., None, None, None]
    elif mixing == "log_bias":
        bias = _finite_log(weight_XN).repeat_interleave(k_XNTJE.shape[2], dim=1)[:, None, None]
    k_XJYE = k_XNTJE.flatten(1, 2).transpose(1, 2)
    v_XJYE = v_XNTJE.flatten(1, 2).transpose(1, 2)
    return F.scaled_dot_product_attention(q_XHWE, k_XJYE, v_XJYE, attn_mask=bias, enable_gqa=gqa)


def _queries_to_chapters(
    q_XHE: Tensor, k_UTJE: Tensor, v_UTJE: Tensor, row_XN: Tensor, weight_XN: Tensor, mixing: str
) -> Tensor:
    """Attention of X positions, each with chapters of its own, in blocks of one chapter: (X, H, E).

    Scores are few (N * T per position and head), so the softmax over them need not be fused.
    """
    num_positions, num_heads, head_dim = q_XHE.shape
    num_read, num_kv_heads = row_XN.shape[1], k_UTJE.shape[2]
    slot_P, chapter_Z, size = _blocks(row_XN.flatten(), k_UTJE.shape[0])
    position_P = torch.arange(slot_P.numel(), device=slot_P.device) // num_read
    # slots that no pair fills work on any positions, spread out, and nobody reads the result
    position_S = torch.arange(chapter_Z.numel() * size, device=slot_P.device) % num_positions
    position_S = position_S.scatter(0, slot_P, position_P)
    split = (chapter_Z.numel(), size, num_kv_heads, num_heads // num_kv_heads)
    q_ZJME = q_XHE[position_S].view(*split, head_dim).transpose(1, 2).flatten(2, 3)
    k_ZJTE = k_UTJE.transpose(1, 2)[chapter_Z]
    v_ZJTE = v_UTJE.transpose(1, 2)[chapter_Z]

    def by_pair(x_ZJMF: Tensor) -> Tensor:
        """From blocks (Z, J, Q * R, F) to pairs (X, N, H, F)."""
        x_SHF = x_ZJMF.unflatten(2, (size, -1)).transpose(1, 2).flatten(2, 3).flatten(0, 1)
        return x_SHF[slot_P].unflatten(0, (num_positions, num_read))

    score_XNHT = by_pair(q_ZJME @ k_ZJTE.transpose(-1, -2)) * head_dim**-0.5
    weight_XN11 = weight_XN[..., None, None]
    if mixing == "joint":
        score_XNHT = score_XNHT * weight_XN11
    elif mixing == "log_bias":
        score_XNHT = score_XNHT + _finite_log(weight_XN11)
    if mixing == "per_chapter":
        share_XNHT = score_XNHT.softmax(-1) * weight_XN11
    else:
        together_XHY = score_XNHT.transpose(1, 2).flatten(2).softmax(-1)
        share_XNHT = together_XHY.unflatten(2, (num_read, -1)).transpose(1, 2)
        if mixing == "joint":
            share_XNHT = share_XNHT * weight_XN11
    share_SHT = share_XNHT.new_zeros(position_S.numel(), *share_XNHT.shape[2:])
    share_SHT = share_SHT.index_put((slot_P,), share_XNHT.flatten(0, 1))
    share_ZJMT = share_SHT.view(*split, -1).transpose(1, 2).flatten(2, 3)
    return by_pair(share_ZJMT @ v_ZJTE).sum(1)


def _blocks(row_P: Tensor, num_chapters: int) -> tuple[Tensor, Tensor, int]:
    """Pairs sorted by chapter: the slot of each pair, the chapter of each block, the block size."""
    num_blocks, size = query_blocks(row_P.numel(), num_chapters)
    order_P = row_P.argsort(stable=True)
    sorted_P = row_P[order_P]
    count_U = row_P.new_zeros(num_chapters).scatter_add_(0, row_P, torch.ones_like(row_P))
    end_U = ((count_U + size - 1) // size).cumsum(0)  # blocks up to and including each chapter's
    first_slot_U = F.pad(end_U, (1, 0))[:-1] * size
    first_pair_U = count_U.cumsum(0) - count_U
    rank_P = torch.arange(row_P.numel(), device=row_P.device) - first_pair_U[sorted_P]
    slot_P = torch.empty_like(row_P).scatter_(0, order_P, first_slot_U[sorted_P] + rank_P)
    block_Z = torch.arange(num_blocks, device=row_P.device)
    chapter_Z = torch.searchsorted(end_U, block_Z, right=True).clamp(max=num_chapters - 1)
    return slot_P, chapter_Z, size


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
) -> Tensor:
    """Share of the attention that falls on the shared chapters, mean over positions and heads.

    For ``per_chapter`` this is their mixing weight. Otherwise it is measured on ``MASS_GROUPS``
    groups, evenly spaced over the batch: every group needs a copy of its chapters. Scalar float32.
    """
    length = q_BLHE.shape[1]
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
    k_XNTJE = _take(k_UTJE, row_BGN.flatten(0, 1)[taken_X]).float()
    k_XNTHE = k_XNTJE.repeat_interleave(q_XWHE.shape[2] // k_XNTJE.shape[3], dim=3)
    weight_XN = weight_BGN.flatten(0, 1)[taken_X].float()
    scores_XHWNT = torch.einsum("xwhe,xnthe->xhwnt", q_XWHE, k_XNTHE) * q_XWHE.shape[-1] ** -0.5
    if mixing == "joint":
        scores_XHWNT = scores_XHWNT * weight_XN[:, None, None, :, None]
    elif mixing == "log_bias":
        scores_XHWNT = scores_XHWNT + _finite_log(weight_XN)[:, None, None, :, None]
    mass_XHWN = scores_XHWNT.flatten(-2).softmax(-1).unflatten(-1, (num_read, -1)).sum(-1)
    shared_XW = mass_XHWN[..., :num_shared].sum(-1).mean(1)
    return (shared_XW * real_XW).sum() / real_XW.sum()


def _take(chapters_UTJE: Tensor, row_XN: Tensor) -> Tensor:
    """Each group's chapters: (X, N, T, J, E)."""
    return chapters_UTJE.index_select(0, row_XN.flatten()).unflatten(0, row_XN.shape)


def _finite_log(weight: Tensor) -> Tensor:
    """A routed weight can underflow to 0, where log's gradient is infinite and 0 * inf is NaN."""
    return weight.clamp(min=torch.finfo(weight.dtype).tiny).log()
