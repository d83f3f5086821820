"""Routed attention of positions that each have chapters of their own, chapter by chapter.

A chapter would have to be copied for every position that reads it. Instead the positions are sorted
by chapter, as tokens in a mixture of experts, and each chapter meets all of its readers in one
product. Chapters with like numbers of readers share a batched product, padded to the largest.

X positions, H heads, J key/value heads, R = H / J, E head dim, U chapters, T tokens per chapter,
N chapters per position, P = X * N pairs of a position and a chapter, A chapters of a bucket, I its
readers per chapter, Z = A * J, Y = I * R; M memory width, where a bank's tokens are both.

With weights w, r_nt = scale q.k_nt, and softmax p_nt and log-sum-exp l_n of the scores s_nt over
one chapter, every mixing is sum_n f_n u_n sum_t p_nt v_nt, and f and u depend on w and l alone:

    joint        s = w r   f = softmax_n(l)           u = w
    log_bias     s = r     f = softmax_n(l + log w)   u = 1
    unweighted   s = r     f = softmax_n(l)           u = 1
    per_chapter  s = r     f = 1                      u = w

So one pass over the pairs gives partial outputs and l, and a weighted sum of rows the rest. The
backward pass recomputes the scores; none are kept.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from moc.ops.grouped_passes import backward_pass, forward_pass
from moc.ops.grouped_plan import Plan, plan_groups
from moc.ops.grouped_sources import BankChapters, ProjectedChapters


def grouped_attention(
    q_XHE: Tensor,
    k_UTJE: Tensor,
    v_UTJE: Tensor | None,
    row_XN: Tensor,
    weight_XN: Tensor,
    mixing: str,
    scale: float,
) -> Tensor:
    """Outputs (X, H, E): position x reads the chapters ``row_XN[x]``.

    Without ``v_UTJE`` the keys are the values too.
    """
    if torch.compiler.is_compiling():
        return opaque_grouped_attention(q_XHE, k_UTJE, v_UTJE, row_XN, weight_XN, mixing, scale)[0]
    out_XHE: Tensor = _Grouped.apply(q_XHE, k_UTJE, v_UTJE, row_XN, weight_XN, mixing, scale)
    return out_XHE


def grouped_bank_attention(
    q_XHM: Tensor,
    bank_CTM: Tensor,
    chapter_U: Tensor,
    tap_UTM: Tensor | None,
    row_XN: Tensor,
    weight_XN: Tensor,
    mixing: str,
    scale: float,
    norm_eps: float | None,
) -> Tensor:
    """``grouped_attention`` to the tokens of a bank, RMS-normalised if ``norm_eps`` is given: both
    keys and values, for every head, (X, H, M).

    Chapters are fetched and normalised a bucket at a time, and so are their gradients made, which
    go to ``tap_UTM`` (see ``Transformer.taps``): nothing of the bank's size comes into being.

    Args:
        chapter_U: what ``row_XN`` counts, as chapters of the bank.
    """
    out_XHM: Tensor = _GroupedBank.apply(
        q_XHM, bank_CTM.detach(), chapter_U, tap_UTM, row_XN, weight_XN, mixing, scale, norm_eps
    )
    return out_XHM


class _Grouped(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q_XHE: Tensor,
        k_UTJE: Tensor,
        v_UTJE: Tensor | None,
        row_XN: Tensor,
        weight_XN: Tensor,
        mixing: str,
        scale: float,
    ) -> Tensor:
        out_XHE, lse_XHN = _projected_forward(
            q_XHE, k_UTJE, v_UTJE, row_XN, weight_XN, mixing, scale
        )
        ctx.save_for_backward(q_XHE, k_UTJE, v_UTJE, row_XN, weight_XN, out_XHE, lse_XHN)
        ctx.mixing, ctx.scale = mixing, scale
        return out_XHE

    @staticmethod
    def backward(ctx: Any, grad_XHE: Tensor) -> tuple[Tensor | None, ...]:
        q_XHE, k_UTJE, v_UTJE, row_XN, weight_XN, out_XHE, lse_XHN = ctx.saved_tensors
        grad_q, grad_k, grad_v, grad_weight = _projected_backward(
            grad_XHE,
            q_XHE,
            k_UTJE,
            v_UTJE,
            row_XN,
            weight_XN,
            out_XHE,
            lse_XHN,
            ctx.mixing,
            ctx.scale,
        )
        return grad_q, grad_k, grad_v, None, grad_weight, None, None


class _GroupedBank(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q_XHM: Tensor,
        bank_CTM: Tensor,
        chapter_U: Tensor,
        tap_UTM: Tensor | None,
        row_XN: Tensor,
        weight_XN: Tensor,
        mixing: str,
        scale: float,
        norm_eps: float | None,
    ) -> Tensor:
        plan = _bank_plan(q_XHM, bank_CTM, chapter_U, row_XN)
        source = BankChapters(bank_CTM, chapter_U, 0, norm_eps, plan)
        out_XHM, lse_XHN = forward_pass(q_XHM, source, plan, weight_XN, mixing, scale)
        ctx.save_for_backward(q_XHM, bank_CTM, chapter_U, row_XN, weight_XN, out_XHM, lse_XHN)
        ctx.settings = mixing, scale, norm_eps, 0 if tap_UTM is None else len(tap_UTM)
        return out_XHM

    @staticmethod
    def backward(ctx: Any, grad_XHM: Tensor) -> tuple[Tensor | None, ...]:
        q_XHM, bank_CTM, chapter_U, row_XN, weight_XN, out_XHM, lse_XHN = ctx.saved_tensors
        mixing, scale, norm_eps, num_taps = ctx.settings
        plan = _bank_plan(q_XHM, bank_CTM, chapter_U, row_XN)
        source = BankChapters(bank_CTM, chapter_U, num_taps, norm_eps, plan)
        grad_q, grad_weight = backward_pass(
            grad_XHM, q_XHM, source, plan, weight_XN, out_XHM, lse_XHN, mixing, scale
        )
        return grad_q, None, None, source.grad_UTM, None, grad_weight, None, None, None


def _bank_plan(q_XHM: Tensor, bank_CTM: Tensor, chapter_U: Tensor, row_XN: Tensor) -> Plan:
    return plan_groups(
        row_XN,
        num_chapters=len(chapter_U),
        num_tokens=bank_CTM.shape[1],
        num_heads=q_XHM.shape[1],
        num_kv_heads=1,
    )


def _projected_plan(q_XHE: Tensor, k_UTJE: Tensor, row_XN: Tensor) -> Plan:
    num_chapters, num_tokens, num_kv_heads, _ = k_UTJE.shape
    return plan_groups(
        row_XN,
        num_chapters=num_chapters,
        num_tokens=num_tokens,
        num_heads=q_XHE.shape[1],
        num_kv_heads=num_kv_heads,
    )


def _projected_forward(
    q_XHE: Tensor,
    k_UTJE: Tensor,
    v_UTJE: Tensor | None,
    row_XN: Tensor,
    weight_XN: Tensor,
    mixing: str,
    scale: float,
) -> tuple[Tensor, Tensor]:
    plan = _projected_plan(q_XHE, k_UTJE, row_XN)
    return forward_pass(
        q_XHE, ProjectedChapters(k_UTJE, v_UTJE, plan), plan, weight_XN, mixing, scale
    )


def _projected_backward(
    grad_XHE: Tensor,
    q_XHE: Tensor,
    k_UTJE: Tensor,
    v_UTJE: Tensor | None,
    row_XN: Tensor,
    weight_XN: Tensor,
    out_XHE: Tensor,
    lse_XHN: Tensor,
    mixing: str,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """Gradients of queries, keys, values and weights."""
    plan = _projected_plan(q_XHE, k_UTJE, row_XN)
    source = ProjectedChapters(k_UTJE, v_UTJE, plan)
    grad_q, grad_weight = backward_pass(
        grad_XHE, q_XHE, source, plan, weight_XN, out_XHE, lse_XHN, mixing, scale
    )
    return grad_q, source.grads[0], None if v_UTJE is None else source.grads[1], grad_weight


# How many positions read a chapter is data. To the compiler both passes are one operation each.


@torch.library.custom_op("moc::grouped_attention", mutates_args=())
def opaque_grouped_attention(
    q_XHE: Tensor,
    k_UTJE: Tensor,
    v_UTJE: Tensor | None,
    row_XN: Tensor,
    weight_XN: Tensor,
    mixing: str,
    scale: float,
) -> tuple[Tensor, Tensor]:
    return _projected_forward(q_XHE, k_UTJE, v_UTJE, row_XN, weight_XN, mixing, scale)


@torch.library.custom_op("moc::grouped_attention_backward", mutates_args=())
def _opaque_backward(
    grad_XHE: Tensor,
    q_XHE: Tensor,
    k_UTJE: Tensor,
    v_UTJE: Tensor | None,
    row_XN: Tensor,
    weight_XN: Tensor,
    out_XHE: Tensor,
    lse_XHN: Tensor,
    mixing: str,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    grad_q, grad_k, grad_v, grad_weight = _projected_backward(
        grad_XHE, q_XHE, k_UTJE, v_UTJE, row_XN, weight_XN, out_XHE, lse_XHN, mixing, scale
    )
    return grad_q, grad_k, q_XHE.new_empty(0) if grad_v is None else grad_v, grad_weight


@opaque_grouped_attention.register_fake
def _(
    q_XHE: Tensor, k_UTJE: Tensor, v_UTJE: Tensor | None, row_XN: Tensor, *_: Any
) -> tuple[Tensor, Tensor]:
    lse_XHN = q_XHE.new_empty(q_XHE.shape[0], q_XHE.shape[1], row_XN.shape[1])
    return _like(q_XHE), lse_XHN


@_opaque_backward.register_fake
def _(
    grad_XHE: Tensor,
    q_XHE: Tensor,
    k_UTJE: Tensor,
    v_UTJE: Tensor | None,
    row_XN: Tensor,
    weight_XN: Tensor,
    *_: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    grad_v = q_XHE.new_empty(0) if v_UTJE is None else _like(v_UTJE)
    return _like(q_XHE), _like(k_UTJE), grad_v, _like(weight_XN)


def _like(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:5], *output)
    ctx.mixing, ctx.scale = inputs[5:]


def _compiled_backward(ctx: Any, grad_XHE: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    grad_q, grad_k, grad_v, grad_weight = _opaque_backward(
        grad_XHE, *ctx.saved_tensors, ctx.mixing, ctx.scale
    )
    shared = ctx.saved_tensors[2] is None
    return grad_q, grad_k, None if shared else grad_v, None, grad_weight, None, None


opaque_grouped_attention.register_autograd(_compiled_backward, setup_context=_save)
