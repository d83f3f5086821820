"""How much of routed attention falls on the shared chapters. Diagnostics: materialises scores.

B batch, L length, H heads, J key/value heads, E head dim, U chapters, T tokens per chapter, G
groups per sequence, W positions per group, N chapters per group, X groups that are measured.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from moc.ops.mixing import MIXINGS, token_shares

MASS_GROUPS = 32


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

    With a softmax for each chapter this is the factor of their values. Otherwise it is measured on
    ``MASS_GROUPS`` groups, evenly spaced over the batch: every group needs a copy of its chapters.
    Scalar float32.
    """
    formula = MIXINGS[mixing]
    length = q_BLHE.shape[1]
    if scale is None:
        scale = q_BLHE.shape[-1] ** -0.5
    if formula.per_chapter:
        group_L = torch.arange(length, device=q_BLHE.device) // group_tokens
        factor_BGN = torch.ones_like(weight_BGN)
        if formula.value_factor:
            factor_BGN = formula.value_factor.of(weight_BGN)
        return factor_BGN[:, group_L, :num_shared].float().sum(-1).mean()
    num_groups = row_BGN.shape[1]
    missing = num_groups * group_tokens - length
    q_XWHE = F.pad(q_BLHE, (0, 0, 0, 0, 0, missing)).unflatten(1, (num_groups, -1)).flatten(0, 1)
    real_GW = torch.arange(num_groups * group_tokens, device=q_BLHE.device) < length
    real_XW = real_GW.view(num_groups, -1).repeat(len(q_BLHE), 1)
    taken_X = torch.arange(len(q_XWHE), device=q_BLHE.device)
    taken_X = taken_X[:: -(-len(taken_X) // MASS_GROUPS)]
    q_XWHE, real_XW = q_XWHE[taken_X].float(), real_XW[taken_X]
    k_XNTJE = k_UTJE[row_BGN.flatten(0, 1)[taken_X]].float()
    k_XNTHE = k_XNTJE.repeat_interleave(q_XWHE.shape[2] // k_XNTJE.shape[3], dim=3)
    weight_X11N1 = weight_BGN.flatten(0, 1)[taken_X].float()[:, None, None, :, None]
    raw_XHWNT = torch.einsum("xwhe,xnthe->xhwnt", q_XWHE, k_XNTHE) * scale
    mass_XHWN = token_shares(raw_XHWNT, weight_X11N1, formula).sum(-1)
    shared_XW = mass_XHWN[..., :num_shared].sum(-1).mean(1)
    return (shared_XW * real_XW).sum() / real_XW.sum()
