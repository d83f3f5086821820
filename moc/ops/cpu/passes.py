"""The two passes of grouped attention over the buckets of a plan.

Of 16-bit inputs a bucket at a time is made wide (``moc.ops.precision``), and all is wide until what
a pass returns: few CPUs multiply 16-bit numbers as fast, and partial outputs are sums.

Letters and formulas as in ``moc.ops.cpu.grouped``.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from moc.ops.cpu.plan import Plan
from moc.ops.cpu.sources import Source
from moc.ops.mixing import Mixing, chapter_factors, chapter_gradients_
from moc.ops.precision import wide_dtype, without_autocast


@without_autocast
def forward_pass(
    q_XHE: Tensor,
    source: Source,
    plan: Plan,
    weight_XN: Tensor,
    mixing: Mixing,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Outputs (X, H, E), and log-sum-exp of every pair's scores, wide (X, H, N)."""
    wide = wide_dtype(q_XHE.dtype)
    q_SE = q_XHE.reshape(-1, q_XHE.shape[-1])
    weight_XHN = weight_XN[:, None].to(wide).expand(-1, q_XHE.shape[1], -1)
    factor_S = plan.by_row(mixing.score_factor.of(weight_XHN)) if mixing.score_factor else None
    lse_S = q_SE.new_empty(len(plan.source_S), dtype=wide)
    # where what falls on a chapter is known beforehand, partial outputs are summed as they come
    summed_YE = torch.zeros_like(q_SE, dtype=wide) if mixing.per_chapter else None
    value_factor_S = None
    if mixing.per_chapter and mixing.value_factor:
        value_factor_S = plan.by_row(mixing.value_factor.of(weight_XHN))
    num_partial = 0 if summed_YE is not None else len(plan.source_S)
    out_SE = q_SE.new_empty(num_partial, q_SE.shape[1], dtype=wide)
    for bucket in plan.buckets:
        k_ZTE, v_ZTE = source.fetch(bucket, wide)
        here, shape = bucket.rows(len(k_ZTE))
        q_ZYE = q_SE.index_select(0, plan.source_S[here]).to(wide).view(*shape, -1)
        score_ZYT = torch.bmm(q_ZYE, k_ZTE.transpose(1, 2)).mul_(scale)
        if factor_S is not None:
            score_ZYT *= factor_S[here].view(*shape, 1)
        lse_ZY = score_ZYT.logsumexp(-1)
        lse_S[here] = lse_ZY.flatten()
        share_ZYT = score_ZYT.sub_(lse_ZY[..., None]).exp_()
        if summed_YE is not None:
            if value_factor_S is not None:
                share_ZYT *= value_factor_S[here].view(*shape, 1)
            out_ZYE = torch.bmm(share_ZYT, v_ZTE, out=q_ZYE)
            summed_YE.index_add_(0, plan.source_S[here], out_ZYE.flatten(0, 1))
        else:
            torch.bmm(share_ZYT, v_ZTE, out=out_SE[here].view(*shape, -1))
    lse_XHN = lse_S[plan.row_XHN]
    if summed_YE is None:
        factor_XHN, value_factor_XHN = chapter_factors(lse_XHN, weight_XN, mixing)
        summed_YE = F.embedding_bag(
            plan.row_XHN.flatten(0, 1),
            out_SE,
            mode="sum",
            per_sample_weights=(factor_XHN * value_factor_XHN).flatten(0, 1),
        )
    return summed_YE.view(q_XHE.shape).to(q_XHE.dtype), lse_XHN


@without_autocast
def backward_pass(
    grad_XHE: Tensor,
    q_XHE: Tensor,
    source: Source,
    plan: Plan,
    weight_XN: Tensor,
    out_XHE: Tensor,
    lse_XHN: Tensor,
    mixing: Mixing,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Gradients of queries and weights; those of keys and values go to ``source``."""
    wide = lse_XHN.dtype
    q_SE, grad_SE = (x.reshape(-1, x.shape[-1]) for x in (q_XHE, grad_XHE))
    factor_XHN, value_factor_XHN = chapter_factors(lse_XHN, weight_XN, mixing)
    # rows that only pad have no softmax (exp(s - inf)) and no weight
    lse_S = plan.by_row(lse_XHN, fill=float("inf"))
    factor_S, value_factor_S = plan.by_row(factor_XHN), plan.by_row(value_factor_XHN)
    out_SE = out_XHE.reshape(grad_SE.shape)
    dot_S = torch.linalg.vecdot(grad_SE.to(wide), out_SE.to(wide))[plan.source_S]
    grad_q_YE = torch.zeros_like(q_SE, dtype=wide)
    grad_weight_S = torch.zeros_like(lse_S)
    for bucket in plan.buckets:
        k_ZTE, v_ZTE = source.fetch(bucket, wide)
        here, shape = bucket.rows(len(k_ZTE))
        source_Y = plan.source_S[here]
        q_ZYE = q_SE.index_select(0, source_Y).to(wide).view(*shape, -1)
        grad_ZYE = grad_SE.index_select(0, source_Y).to(wide).view(*shape, -1)
        lse_ZY1, factor_ZY1, value_factor_ZY1, dot_ZY1 = (
            x_S[here].view(*shape, 1) for x_S in (lse_S, factor_S, value_factor_S, dot_S)
        )
        raw_ZYT = torch.bmm(q_ZYE, k_ZTE.transpose(1, 2)).mul_(scale)
        # the factor of the scores is that of the values
        score_ZYT = raw_ZYT * value_factor_ZY1 if mixing.score_factor else raw_ZYT
        value_share_ZYT, grad_score_ZYT, grad_weight_ZY1 = chapter_gradients_(
            share_T=(score_ZYT - lse_ZY1).exp_(),
            grad_share_T=torch.bmm(grad_ZYE, v_ZTE.transpose(1, 2)),
            raw_T=raw_ZYT,
            factor_1=factor_ZY1,
            value_factor_1=value_factor_ZY1,
            dot_1=dot_ZY1,
            mixing=mixing,
        )
        if grad_weight_ZY1 is not None:
            grad_weight_S[here] = grad_weight_ZY1.flatten()
        grad_q_ZYE = torch.bmm(grad_score_ZYT, k_ZTE)
        grad_q_YE.index_add_(0, source_Y, grad_q_ZYE.flatten(0, 1), alpha=scale)
        grad_k_ZTE = torch.bmm(grad_score_ZYT.transpose(1, 2), q_ZYE).mul_(scale)
        source.store(bucket, grad_k_ZTE, torch.bmm(value_share_ZYT.transpose(1, 2), grad_ZYE))
    grad_weight_XN = grad_weight_S[plan.row_XHN].sum(1)
    for weighting in mixing.weightings[:1]:
        grad_weight_XN = weighting.to_weight(grad_weight_XN, weight_XN.to(wide))
    return grad_q_YE.view(q_XHE.shape).to(q_XHE.dtype), grad_weight_XN.to(weight_XN.dtype)
