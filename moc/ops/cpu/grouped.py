"""Routed attention of positions that each have chapters of their own, chapter by chapter.

A chapter would have to be copied for every position that reads it. Instead the positions are sorted
by chapter, as tokens in a mixture of experts, and each chapter meets all of its readers in one
product. Chapters with like numbers of readers share a batched product, padded to the largest.

X positions, H heads, J key/value heads, R = H / J, E head dim, U chapters, T tokens per chapter,
N chapters per position, P = X * N pairs of a position and a chapter, A chapters of a bucket, I its
readers per chapter, Z = A * J, Y = I * R.

As ``moc.ops.mixing`` says, how a position's chapters share depends on their log-sum-exps alone. So
one pass over the pairs gives partial outputs and these, and a weighted sum of rows the rest. The
backward pass recomputes the scores; none are kept. Runs on any device, but waits for it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from moc.ops.cpu.passes import backward_pass, forward_pass
from moc.ops.cpu.plan import Plan, plan_groups
from moc.ops.cpu.sources import ProjectedSource
from moc.ops.mixing import MIXINGS, Mixing, differentiable
from moc.ops.precision import wide_dtype
from moc.ops.shapes import moves_queries


def supports(q_BLHE: Tensor, k_UTJE: Tensor, num_groups: int, mixing: Mixing) -> bool:
    """Short groups, and gradients that are written down."""
    batch, length = q_BLHE.shape[:2]
    return moves_queries(batch, length, num_groups, k_UTJE.shape[1]) and differentiable(mixing)


def attend(
    q_BLHE: Tensor,
    k_UTJE: Tensor,
    v_UTJE: Tensor,
    row_BGN: Tensor,
    weight_BGN: Tensor,
    *,
    mixing: str,
    group_tokens: int,
    scale: float,
) -> Tensor:
    """``routed_attention``, where ``supports``."""
    row_XN, weight_XN = by_position(q_BLHE, row_BGN, weight_BGN, group_tokens)
    values = None if v_UTJE is k_UTJE else v_UTJE
    arguments = q_BLHE.flatten(0, 1), k_UTJE, values, row_XN, weight_XN, mixing, scale
    if torch.compiler.is_compiling():
        return opaque_grouped_attention(*arguments)[0].view(q_BLHE.shape)
    out_XHE: Tensor = _Grouped.apply(*arguments)
    return out_XHE.view(q_BLHE.shape)


def by_position(
    q_BLHE: Tensor, row_BGN: Tensor, weight_BGN: Tensor, group_tokens: int
) -> tuple[Tensor, Tensor]:
    """The chapters of every position and their weights, (X, N) each."""
    group_L = torch.arange(q_BLHE.shape[1], device=q_BLHE.device) // group_tokens
    return row_BGN[:, group_L].flatten(0, 1), weight_BGN[:, group_L].flatten(0, 1)


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
    source = ProjectedSource(k_UTJE, v_UTJE, plan)
    return forward_pass(q_XHE, source, plan, weight_XN, MIXINGS[mixing], scale)


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
    source = ProjectedSource(k_UTJE, v_UTJE, plan)
    grad_q, grad_weight = backward_pass(
        grad_XHE, q_XHE, source, plan, weight_XN, out_XHE, lse_XHN, MIXINGS[mixing], scale
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
    lse_shape = (*q_XHE.shape[:2], row_XN.shape[1])
    return _like(q_XHE), q_XHE.new_empty(lse_shape, dtype=wide_dtype(q_XHE.dtype))


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
