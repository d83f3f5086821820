"""How the chapters of a group are mixed: the formulas, once, for every way of routed attention.

N chapters of T tokens with weights w_n >= 0 of any sum, raw scores r_nt = scale q.k_nt:

    s_nt = a(w_n) r_nt + b(w_n)
    p    = softmax of s over all N * T tokens, or over the T tokens of each chapter
    out  = sum_nt c(w_n) p_nt v_nt

                  a  b      c  softmax over
    joint         w  0      w  all tokens: keys and values scaled by w (arXiv 2603.21096)
    joint_normed  1  0      w  all tokens: keys that are normalised are not scaled
    per_chapter   1  0      w  each chapter's
    log_bias      1  log w  1  all tokens
    unweighted    1  0      1  all tokens

A mode is one entry of ``MIXINGS``. ``moc.ops.reference`` computes any; a faster way asks these
properties what it can do, in its ``supports``.

X positions or groups, H heads, N chapters, T tokens of a chapter.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Weighting(NamedTuple):
    """A function of a chapter's weight."""

    name: str  # by which the Triton kernels know it
    of: Callable[[Tensor], Tensor]
    to_weight: Callable[[Tensor, Tensor], Tensor]  # its gradient, and the weight: the weight's


class Mixing(NamedTuple):
    """What a mode does with the weights; None leaves scores or values as they are."""

    score_factor: Weighting | None = None  # a
    score_bias: Weighting | None = None  # b
    value_factor: Weighting | None = None  # c
    per_chapter: bool = False  # a softmax for each chapter

    @property
    def plain_scores(self) -> bool:
        return self.score_factor is None and self.score_bias is None

    @property
    def weightings(self) -> list[Weighting]:
        return [x for x in (self.score_factor, self.score_bias, self.value_factor) if x]


def finite_log(weight: Tensor) -> Tensor:
    """A routed weight can underflow to 0, where log's gradient is infinite and 0 * inf is NaN."""
    return _positive(weight).log()


def _positive(weight: Tensor) -> Tensor:
    return weight.clamp(min=torch.finfo(weight.dtype).tiny)


_WEIGHT = Weighting("weight", lambda w: w, lambda grad, w: grad)
_LOG = Weighting("log", finite_log, lambda grad, w: grad / _positive(w))

MIXINGS = {
    "joint": Mixing(score_factor=_WEIGHT, value_factor=_WEIGHT),
    "joint_normed": Mixing(value_factor=_WEIGHT),
    "per_chapter": Mixing(value_factor=_WEIGHT, per_chapter=True),
    "log_bias": Mixing(score_bias=_LOG),
    "unweighted": Mixing(),
}


def with_equal_weights(mixing: str) -> str:
    """The mode of a layer without a router, where there is nothing to weigh: equal weights would
    only shrink the keys or the outputs by 1/N, so the tokens enter as they are."""
    return "unweighted" if mixing in ("joint", "joint_normed") else mixing


def token_shares(raw_NT: Tensor, weight_N1: Tensor, mixing: Mixing) -> Tensor:
    """p (..., N, T): what falls on every token, from the raw scores."""
    score_NT = raw_NT
    if mixing.score_factor:
        score_NT = score_NT * mixing.score_factor.of(weight_N1)
    if mixing.score_bias:
        score_NT = score_NT + mixing.score_bias.of(weight_N1)
    if mixing.per_chapter:
        return score_NT.softmax(-1)
    return score_NT.flatten(-2).softmax(-1).unflatten(-1, score_NT.shape[-2:])


def value_shares(raw_NT: Tensor, weight_N1: Tensor, mixing: Mixing) -> Tensor:
    """c p (..., N, T): what every token's value is multiplied by."""
    share_NT = token_shares(raw_NT, weight_N1, mixing)
    return share_NT * mixing.value_factor.of(weight_N1) if mixing.value_factor else share_NT


# Of chapters that each had a softmax of their own, p_nt, with log-sum-exp l_n of a r: every mode is
# out = sum_n f_n c_n sum_t p_nt v_nt, where f = softmax_n(l + b), or 1 with a softmax per chapter.


def chapter_factors(lse_XHN: Tensor, weight_XN: Tensor, mixing: Mixing) -> tuple[Tensor, Tensor]:
    """f and c, (X, H, N) each."""
    weight_XHN = weight_XN[:, None].to(lse_XHN.dtype).expand(lse_XHN.shape)
    value_XHN = torch.ones_like(lse_XHN)
    if mixing.value_factor:
        value_XHN = mixing.value_factor.of(weight_XHN)
    if mixing.per_chapter:
        return torch.ones_like(lse_XHN), value_XHN
    if mixing.score_bias:
        lse_XHN = lse_XHN + mixing.score_bias.of(weight_XHN)
    return lse_XHN.softmax(-1), value_XHN


def differentiable(mixing: Mixing) -> bool:
    """Whether ``chapter_gradients_`` knows its gradients: those of a single weighting, either on
    scores and values alike, or on values alone, or as a bias alone."""
    if mixing.score_bias:
        return not (mixing.per_chapter or mixing.score_factor or mixing.value_factor)
    if mixing.score_factor is None:
        return True
    return not mixing.per_chapter and mixing.score_factor is mixing.value_factor


def chapter_gradients_(
    share_T: Tensor,
    grad_share_T: Tensor,
    raw_T: Tensor,
    factor_1: Tensor,
    value_factor_1: Tensor,
    dot_1: Tensor,
    mixing: Mixing,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Backward pass of the readers of one chapter, in place of ``share_T`` and ``grad_share_T``.

    With g = d out.v and one softmax over all chapters: d s = f p (c g - d out.out). With one for
    each: d s = c p (g - sum_t p g). For whom ``differentiable``: a is 1 or c.

    Args:
        share_T: p, of the chapter's own softmax.
        grad_share_T: g.
        raw_T: r.
        factor_1, value_factor_1, dot_1: f, c, d out.out.

    Returns:
        what its values are multiplied by, and the gradients of r and of the weighting (None: 0).
    """
    if mixing.per_chapter:
        grad_1 = torch.linalg.vecdot(share_T, grad_share_T)[..., None]
        value_share_T = share_T.mul_(value_factor_1)
        grad_score_T = grad_share_T.sub_(grad_1).mul_(value_share_T)
        return value_share_T, grad_score_T, grad_1 if mixing.value_factor else None
    share_T.mul_(factor_1)
    if mixing.score_bias:
        grad_1 = torch.linalg.vecdot(share_T, grad_share_T)[..., None] - dot_1 * factor_1
        return share_T, grad_share_T.sub_(dot_1).mul_(share_T), grad_1
    if mixing.value_factor is None:
        return share_T, grad_share_T.sub_(dot_1).mul_(share_T), None
    grad_1 = torch.linalg.vecdot(share_T, grad_share_T)[..., None]
    grad_score_T = grad_share_T.mul_(value_factor_1).sub_(dot_1).mul_(share_T)
    if mixing.score_factor:
        grad_1 = grad_1 + torch.linalg.vecdot(grad_score_T, raw_T)[..., None]
        grad_score_T.mul_(value_factor_1)
    return share_T.mul_(value_factor_1), grad_score_T, grad_1
