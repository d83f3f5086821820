"""Routed attention: positions read the chapters that their group chose. Chooses how.

B batch, L length, H heads, J key/value heads, E head dim, U distinct chapters, T tokens per
chapter, G routing groups per sequence, N chapters read per group, C chapters of a bank, M memory
width.

``moc.ops.mixing`` says what is computed. The ways to do it, each with a ``supports`` beside it:

- ``triton``: a GPU, several groups per sequence; nothing is copied
- ``cpu.grouped``: short groups (a token each) would copy a chapter for a handful of queries, so
  queries go to their chapters
- ``cpu.gathered``: chapters are copied to their queries, as many as fit into a processor's caches
- ``fused``: chapters are copied to their queries for PyTorch's fused attention
- ``reference``: the formulas as they stand
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from moc.ops import fused, reference
from moc.ops.cpu import bank, gathered, grouped, projection
from moc.ops.mixing import MIXINGS
from moc.ops.norm import rms_norm
from moc.ops.precision import keys_and_values_in, product_dtype
from moc.ops.rows import take_rows
from moc.ops.triton import attention as triton


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
        weight_BGN: at least 0. Their dtype may be wider than that of the others.
        mixing: one of ``moc.ops.mixing.MIXINGS``.
        scale: of the scores; None: 1 / sqrt(E).

    Raises:
        ValueError: for an unknown mixing, or groups that do not cover the sequence.
    """
    if mixing not in MIXINGS:
        raise ValueError(f"mixing {mixing!r} is none of {', '.join(MIXINGS)}")
    length, num_groups = q_BLHE.shape[1], row_BGN.shape[1]
    if num_groups != -(-length // group_tokens):
        raise ValueError(
            f"{num_groups} routing groups of {group_tokens} do not cover {length} positions"
        )
    formula, dtype = MIXINGS[mixing], product_dtype(q_BLHE)
    q_BLHE, (k_UTJE, v_UTJE) = q_BLHE.to(dtype), keys_and_values_in(dtype, k_UTJE, v_UTJE)
    if triton.supports(q_BLHE, k_UTJE, num_groups, formula):
        attend = triton.attend
    elif grouped.supports(q_BLHE, k_UTJE, num_groups, formula):
        attend = grouped.attend
    elif gathered.supports(q_BLHE, formula):
        attend = gathered.attend
    elif fused.supports(formula):
        attend = fused.attend
    else:
        attend = reference.attend
    with torch.autocast(q_BLHE.device.type, enabled=False):  # a way's wide sums stay wide
        return attend(
            q_BLHE,
            k_UTJE,
            v_UTJE,
            row_BGN,
            weight_BGN,
            mixing=mixing,
            group_tokens=group_tokens,
            scale=q_BLHE.shape[-1] ** -0.5 if scale is None else scale,
        )


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
    slot_UTM: Tensor | None = None,
) -> Tensor:
    """``routed_attention`` to the tokens of a bank themselves, keys and values for every head.

    Args:
        chapter_U: the chapters of the bank that ``row_BGN`` counts.
        norm_eps: tokens are RMS-normalised with it; None: taken as they are.
        slot_UTM: see ``moc.ops.rows``.

    Returns:
        (B, L, H, M).
    """
    q_BLHM = q_BLHM.to(product_dtype(q_BLHM))
    if bank.supports(q_BLHM, bank_CTM, slot_UTM, row_BGN.shape[1], MIXINGS[mixing]):
        return bank.attend(
            q_BLHM,
            bank_CTM,
            chapter_U,
            slot_UTM,
            row_BGN,
            weight_BGN,
            mixing=mixing,
            group_tokens=group_tokens,
            scale=scale,
            norm_eps=norm_eps,
        )
    tokens_UTM = take_rows(bank_CTM, chapter_U, slot_UTM)
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


def project_chapters(
    bank_CTM: Tensor,
    chapter_U: Tensor,
    weight: Tensor,
    *,
    norm_eps: float | None,
    slot_UTM: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """``project_tokens`` of the chapters ``chapter_U`` of a bank; ``slot_UTM``: see
    ``moc.ops.rows``."""
    if slot_UTM is not None and projection.supports(bank_CTM, slot_UTM):
        return projection.project(bank_CTM, chapter_U, slot_UTM, weight, norm_eps)
    return project_tokens(take_rows(bank_CTM, chapter_U, slot_UTM), weight, norm_eps=norm_eps)


def project_tokens(
    tokens_UTM: Tensor, weight: Tensor, *, norm_eps: float | None
) -> tuple[Tensor, Tensor]:
    """Keys and values (U, T, J * E) of chapters.

    Args:
        weight: (2 J * E, M), the map to keys and that to values.
        norm_eps: tokens are RMS-normalised with it; None: taken as they are.
    """
    # one product for both would be a copy longer: each is taken by itself
    if norm_eps is not None:
        tokens_UTM = rms_norm(tokens_UTM, None, norm_eps)
    of_k, of_v = weight.chunk(2)
    return F.linear(tokens_UTM, of_k), F.linear(tokens_UTM, of_v)
