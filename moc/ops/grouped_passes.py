"""The two passes of grouped attention over the buckets of a plan.

Letters and formulas as in ``moc.ops.grouped_attention``.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from moc.ops.grouped_plan import Plan
from moc.ops.grouped_sources import Source


def forward_pass(
    q_XHE: Tensor,
    source: Source,
    plan: Plan,
    weight_XN: Tensor,
    mixing: str,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Outputs (X, H, E), and log-sum-exp of every pair's scores (X, H, N)."""
    q_SE = q_XHE.reshape(-1, q_XHE.shape[-1])
    weight_S = plan.by_row(weight_XN[:, None].expand(-1, q_XHE.shape[1], -1))
    lse_S = q_SE.new_empty(len(plan.source_S))
    # with weights that are known beforehand, partial outputs are summed as they come
    summed_YE = torch.zeros_like(q_SE) if mixing == "per_chapter" else None
    out_SE = q_SE.new_empty(0 if summed_YE is not None else len(plan.source_S), q_SE.shape[1])
    for bucket in plan.buckets:
        k_ZTE, v_ZTE = source.fetch(bucket)
        here, shape = bucket.rows(len(k_ZTE))
        q_ZYE = q_SE.index_select(0, plan.source_S[here]).view(*shape, -1)
        score_ZYT = torch.bmm(q_ZYE, k_ZTE.transpose(1, 2)).mul_(scale)
        if mixing == "joint":
            score_ZYT *= weight_S[here].view(*shape, 1)
        lse_ZY = score_ZYT.logsumexp(-1)
        lse_S[here] = lse_ZY.flatten()
        share_ZYT = score_ZYT.sub_(lse_ZY[..., None]).exp_()
        if summed_YE is not None:
            share_ZYT *= weight_S[here].view(*shape, 1)
            out_ZYE = torch.bmm(share_ZYT, v_ZTE, out=q_ZYE)
            summed_YE.index_add_(0, plan.source_S[here], out_ZYE.flatten(0, 1))
        else:
            torch.bmm(share_ZYT, v_ZTE, out=out_SE[here].view(*shape, -1))
    lse_XHN = lse_S[plan.row_XHN]
    if summed_YE is None:
        factor_XHN, value_factor_XHN = _factors(lse_XHN, weight_XN, mixing)
        summed_YE = F.embedding_bag(
            plan.row_XHN.flatten(0, 1),
            out_SE,
            mode="sum",
            per_sample_weights=(factor_XHN * value_factor_XHN).flatten(0, 1),
        )
    return summed_YE.view(q_XHE.shape), lse_XHN


def backward_pass(
    grad_XHE: Tensor,
    q_XHE: Tensor,
    source: Source,
    plan: Plan,
    weight_XN: Tensor,
    out_XHE: Tensor,
    lse_XHN: Tensor,
    mixing: str,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Gradients of queries and weights; those of keys and values go to ``source``.

    With a_nt = d out.v_nt and one softmax over all chapters: d s = f p (u a - d out.out). With one
    for each: d s = u p (a - sum_t p a).
    """
    q_SE, grad_SE = (x.reshape(-1, x.shape[-1]) for x in (q_XHE, grad_XHE))
    factor_XHN, value_factor_XHN = _factors(lse_XHN, weight_XN, mixing)
    # rows that only pad have no softmax (exp(s - inf)) and no weight
    lse_S = plan.by_row(lse_XHN, fill=float("inf"))
    factor_S, value_factor_S = plan.by_row(factor_XHN), plan.by_row(value_factor_XHN)
    lost_S = torch.linalg.vecdot(grad_SE, out_XHE.reshape(grad_SE.shape))[plan.source_S]
    grad_q_YE = torch.zeros_like(q_SE)
    grad_weight_S = torch.empty_like(lse_S)
    for bucket in plan.buckets:
        k_ZTE, v_ZTE = source.fetch(bucket)
        here, shape = bucket.rows(len(k_ZTE))
        source_Y = plan.source_S[here]
        q_ZYE = q_SE.index_select(0, source_Y).view(*shape, -1)
        grad_ZYE = grad_SE.index_select(0, source_Y).view(*shape, -1)
        lse_ZY1, factor_ZY1, value_ZY1, lost_ZY1 = (
            x_S[here].view(*shape, 1) for x_S in (lse_S, factor_S, value_factor_S, lost_S)
        )
        raw_ZYT = torch.bmm(q_ZYE, k_ZTE.transpose(1, 2)).mul_(scale)
        score_ZYT = raw_ZYT * value_ZY1 if mixing == "joint" else raw_ZYT
        share_ZYT = (score_ZYT - lse_ZY1).exp_()
        grad_share_ZYT = torch.bmm(grad_ZYE, v_ZTE.transpose(1, 2))
        if mixing == "per_chapter":
            mean_ZY1 = torch.linalg.vecdot(share_ZYT, grad_share_ZYT)[..., None]
            value_share_ZYT = share_ZYT.mul_(value_ZY1)
            grad_score_ZYT = grad_share_ZYT.sub_(mean_ZY1).mul_(value_share_ZYT)
            grad_weight_ZY1 = mean_ZY1
        elif mixing == "joint":
            share_ZYT.mul_(factor_ZY1)
            mean_ZY1 = torch.linalg.vecdot(share_ZYT, grad_share_ZYT)[..., None]
            grad_score_ZYT = grad_share_ZYT.mul_(value_ZY1).sub_(lost_ZY1).mul_(share_ZYT)
            grad_weight_ZY1 = mean_ZY1 + torch.linalg.vecdot(grad_score_ZYT, raw_ZYT)[..., None]
            grad_score_ZYT.mul_(value_ZY1)
            value_share_ZYT = share_ZYT.mul_(value_ZY1)
        else:
            value_share_ZYT = share_ZYT.mul_(factor_ZY1)
            mean_ZY1 = torch.linalg.vecdot(share_ZYT, grad_share_ZYT)[..., None]
            grad_score_ZYT = grad_share_ZYT.sub_(lost_ZY1).mul_(share_ZYT)
            grad_weight_ZY1 = mean_ZY1 - lost_ZY1 * factor_ZY1  # times w; of log_bias alone
        grad_weight_S[here] = grad_weight_ZY1.flatten()
        grad_q_ZYE = torch.bmm(grad_score_ZYT, k_ZTE)
        grad_q_YE.index_add_(0, source_Y, grad_q_ZYE.flatten(0, 1), alpha=scale)
        grad_k_ZTE = torch.bmm(grad_score_ZYT.transpose(1, 2), q_ZYE).mul_(scale)
        source.store(bucket, grad_k_ZTE, torch.bmm(value_share_ZYT.transpose(1, 2), grad_ZYE))
    grad_weight_XN = grad_weight_S[plan.row_XHN].sum(1)
    if mixing == "log_bias":
        grad_weight_XN = grad_weight_XN / weight_XN.clamp(min=torch.finfo(weight_XN.dtype).tiny)
    elif mixing == "unweighted":
        grad_weight_XN = torch.zeros_like(grad_weight_XN)
    return grad_q_YE.view(q_XHE.shape), grad_weight_XN


def _factors(lse_XHN: Tensor, weight_XN: Tensor, mixing: str) -> tuple[Tensor, Tensor]:
    """f and u, (X, H, N) each, as the module says."""
    weight_XHN = weight_XN[:, None].to(lse_XHN.dtype).expand(lse_XHN.shape)
    match mixing:
        case "joint":
            return lse_XHN.softmax(-1), weight_XHN
        case "per_chapter":
            return torch.ones_like(lse_XHN), weight_XHN
        case "log_bias":
            lse_XHN = lse_XHN + finite_log(weight_XHN)
    return lse_XHN.softmax(-1), torch.ones_like(lse_XHN)


def finite_log(weight: Tensor) -> Tensor:
    """A routed weight can underflow to 0, where log's gradient is infinite and 0 * inf is NaN."""
    return weight.clamp(min=torch.finfo(weight.dtype).tiny).log()
