"""What routed attention reads, in two figures. Diagnostics: materialises scores.

B batch, L length, H heads, J key/value heads, E head dim, U chapters, T tokens per chapter, G
groups per sequence, W positions per group, N chapters per group, X groups that are measured.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from moc.ops.mixing import MIXINGS, Mixing, token_shares
from moc.ops.precision import without_autocast

MEASURED_GROUPS = 32


class ReadFigures(NamedTuple):
    """Means over positions and heads, scalars in float32."""

    shared_mass: Tensor  # share of the attention that falls on the shared chapters
    effective_tokens: Tensor  # exp(entropy) of the shares of the values: N * T if all are alike


@torch.no_grad()
@without_autocast
def read_figures(
    q_BLHE: Tensor,
    k_UTJE: Tensor,
    row_BGN: Tensor,
    weight_BGN: Tensor,
    num_shared: int,
    *,
    mixing: str,
    group_tokens: int,
    scale: float | None = None,
) -> ReadFigures:
    """How much of the attention falls on the shared chapters, and how many tokens it mixes.

    Measured on ``MEASURED_GROUPS`` groups, evenly spaced over the batch: every group needs a copy
    of its chapters. With a softmax for each chapter the shared mass is the share of their factors,
    and known for all groups.
    """
    formula = MIXINGS[mixing]
    length, num_groups = q_BLHE.shape[1], row_BGN.shape[1]
    if scale is None:
        scale = q_BLHE.shape[-1] ** -0.5
    missing = num_groups * group_tokens - length
    q_XWHE = F.pad(q_BLHE, (0, 0, 0, 0, 0, missing)).unflatten(1, (num_groups, -1)).flatten(0, 1)
    real_GW = torch.arange(num_groups * group_tokens, device=q_BLHE.device) < length
    real_XW = real_GW.view(num_groups, -1).repeat(len(q_BLHE), 1)
    taken_X = torch.arange(len(q_XWHE), device=q_BLHE.device)
    taken_X = taken_X[:: -(-len(taken_X) // MEASURED_GROUPS)]
    q_XWHE, real_XW = q_XWHE[taken_X].float(), real_XW[taken_X]
    k_XNTJE = k_UTJE[row_BGN.flatten(0, 1)[taken_X]].float()
    k_XNTHE = k_XNTJE.repeat_interleave(q_XWHE.shape[2] // k_XNTJE.shape[3], dim=3)
    weight_X11N1 = weight_BGN.flatten(0, 1)[taken_X].float()[:, None, None, :, None]
    raw_XHWNT = torch.einsum("xwhe,xnthe->xhwnt", q_XWHE, k_XNTHE) * scale
    share_XHWNT = token_shares(raw_XHWNT, weight_X11N1, formula)

    def mean(x_XHW: Tensor) -> Tensor:
        return (x_XHW.mean(1) * real_XW).sum() / real_XW.sum()

    if formula.per_chapter:
        shared_mass = _shared_factors(weight_BGN, num_shared, formula, group_tokens, length)
    else:
        shared_mass = mean(share_XHWNT.sum(-1)[..., :num_shared].sum(-1))
    if formula.value_factor:
        share_XHWNT = share_XHWNT * formula.value_factor.of(weight_X11N1)
    share_XHWI = share_XHWNT.flatten(-2)
    share_XHWI = share_XHWI / share_XHWI.sum(-1, keepdim=True)
    entropy_XHW = -torch.xlogy(share_XHWI, share_XHWI).sum(-1)
    return ReadFigures(shared_mass, mean(entropy_XHW.exp()))


def _shared_factors(
    weight_BGN: Tensor, num_shared: int, formula: Mixing, group_tokens: int, length: int
) -> Tensor:
    """The share of the shared chapters in what the outputs of chapters are multiplied by."""
    factor_BGN = torch.ones_like(weight_BGN, dtype=torch.float32)
    if formula.value_factor:
        factor_BGN = formula.value_factor.of(weight_BGN.float())
    share_BG = factor_BGN[..., :num_shared].sum(-1) / factor_BGN.sum(-1)
    return share_BG.repeat_interleave(group_tokens, dim=1)[:, :length].mean()
