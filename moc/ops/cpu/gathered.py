"""Fused attention of routing groups over their chapters on a CPU, a few groups at a time.

A group's chapters are copied next to one another for the fused kernel. Here that happens in pieces
that fit into the processor's caches, and again in the backward pass, so that no copy is kept. Of
16-bit inputs the copies are float32: weights round no key, and gradients are 5 times as fast where
a processor has no 16-bit products.

X groups, J key/value heads, Y queries per group and key/value head, E head dim, N chapters per
group, U chapters, T tokens per chapter, Z groups of a piece, P = Z * N, F = T * J * E.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from moc.ops.groups import over_groups
from moc.ops.mixing import MIXINGS, Mixing
from moc.ops.precision import wide_dtype

_COPIED = 2**20  # values of keys that are copied at a time: 4 MB in float32

_attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_attend_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def supports(q_BLHE: Tensor, mixing: Mixing) -> bool:
    """One factor, for values or for keys and values; a softmax for each chapter only of plain
    scores."""
    if q_BLHE.device.type != "cpu" or torch.compiler.is_compiling() or mixing.score_bias:
        return False
    if mixing.score_factor is None:
        return True
    return not mixing.per_chapter and mixing.score_factor is mixing.value_factor


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
    return over_groups(
        _attend_gathered,
        q_BLHE,
        k_UTJE,
        v_UTJE,
        row_BGN,
        weight_BGN,
        mixing=MIXINGS[mixing],
        group_tokens=group_tokens,
        scale=scale,
    )


def _attend_gathered(
    q_XJYE: Tensor,
    k_UTJE: Tensor,
    v_UTJE: Tensor,
    row_XN: Tensor,
    weight_XN: Tensor,
    mixing: Mixing,
    scale: float,
) -> Tensor:
    """One softmax over a group's chapters, whose values, or they and keys, are times the factor."""
    one_copy = v_UTJE is k_UTJE and mixing.score_factor is mixing.value_factor
    factor_XN = None
    if mixing.value_factor:
        factor_XN = mixing.value_factor.of(weight_XN.to(wide_dtype(q_XJYE.dtype)))
    values, for_keys = None if one_copy else v_UTJE, mixing.score_factor is not None
    out_XJYE: Tensor = _Gathered.apply(q_XJYE, k_UTJE, values, row_XN, factor_XN, for_keys, scale)
    return out_XJYE


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q_XJYE: Tensor,
        k_UTJE: Tensor,
        v_UTJE: Tensor | None,
        row_XN: Tensor,
        factor_XN: Tensor | None,
        for_keys: bool,
        scale: float,
    ) -> Tensor:
        outs, lses = [], []
        copies = _Copies(row_XN, factor_XN, for_keys, k_UTJE, v_UTJE)
        for here in copies.pieces():
            _, (k_ZJIE, *v_ZJIE) = copies.take(here)
            q_ZJYE = q_XJYE[here].to(copies.wide)
            out_ZJYE, lse_ZJY = _attend(q_ZJYE, k_ZJIE, *v_ZJIE or [k_ZJIE], scale=scale)
            outs.append(out_ZJYE.to(q_XJYE.dtype))
            lses.append(lse_ZJY)
        ctx.save_for_backward(q_XJYE, k_UTJE, v_UTJE, row_XN, factor_XN, *outs, *lses)
        ctx.for_keys, ctx.scale = for_keys, scale
        return torch.cat(outs)

    @staticmethod
    def backward(ctx: Any, grad_XJYE: Tensor) -> tuple[Tensor | None, ...]:
        q_XJYE, k_UTJE, v_UTJE, row_XN, factor_XN, *saved = ctx.saved_tensors
        outs, lses = saved[: len(saved) // 2], saved[len(saved) // 2 :]
        grad_q = torch.empty_like(q_XJYE)
        copies = _Copies(row_XN, factor_XN, ctx.for_keys, k_UTJE, v_UTJE)
        wide = copies.wide
        into = [torch.zeros_like(x, dtype=wide) for x in (k_UTJE, v_UTJE) if x is not None]
        grad_factor = torch.zeros_like(row_XN, dtype=wide)
        for here, out_ZJYE, lse_ZJY in zip(copies.pieces(), outs, lses, strict=True):
            raw, (k_ZJIE, *v_ZJIE) = copies.take(here)
            grad_q[here], *grads = _attend_backward(
                grad_XJYE[here].to(wide),
                q_XJYE[here].to(wide),
                k_ZJIE,
                *v_ZJIE or [k_ZJIE],
                out_ZJYE.to(wide),
                lse_ZJY,
                0.0,
                False,
                scale=ctx.scale,
            )
            if len(into) == 1:  # one tensor is both
                grads = [grads[0].add_(grads[1])]
            row_P = row_XN[here].flatten()
            tables = zip(grads, raw, into, copies.factors, strict=True)
            for grad_ZJIE, raw_PF, into_UTJE, of_table_XN in tables:
                grad_PF = grad_ZJIE.transpose(1, 2).reshape(raw_PF.shape)
                if of_table_XN is not None:
                    dot_P = torch.linalg.vecdot(grad_PF, raw_PF.to(wide))
                    grad_factor[here] += dot_P.view(row_XN[here].shape)
                    grad_PF = grad_PF.mul_(of_table_XN[here].reshape(-1, 1))
                into_UTJE.flatten(1).index_add_(0, row_P, grad_PF)
        grad_k, *grad_v = (grad_UTJE.to(k_UTJE.dtype) for grad_UTJE in into)
        grads = grad_q, grad_k, grad_v[0] if grad_v else None
        return *grads, None, None if factor_XN is None else grad_factor, None, None


class _Copies:
    """Room for the chapters of a piece, used for one piece after another."""

    def __init__(
        self,
        row_XN: Tensor,
        factor_XN: Tensor | None,
        for_keys: bool,
        k_UTJE: Tensor,
        v_UTJE: Tensor | None,
    ) -> None:
        self.row_XN = row_XN
        self.tables, self.factors = [k_UTJE], [factor_XN if for_keys else None]
        if v_UTJE is not None:
            self.tables, self.factors = [k_UTJE, v_UTJE], [*self.factors, factor_XN]
        self.wide = wide_dtype(k_UTJE.dtype)
        num_read, num_values = row_XN.shape[1], k_UTJE[0].numel()
        self.size = min(len(row_XN), max(1, _COPIED // (num_read * num_values)))  # groups
        shape = (len(self.tables), self.size * num_read, num_values)
        self.raw = k_UTJE.new_empty(shape)
        as_they_are = factor_XN is None and self.wide == k_UTJE.dtype
        self.scaled = None if as_they_are else k_UTJE.new_empty(shape, dtype=self.wide)

    def pieces(self) -> Iterator[slice]:
        starts = range(0, len(self.row_XN), self.size)
        return (slice(start, start + self.size) for start in starts)

    def take(self, here: slice) -> tuple[list[Tensor], list[Tensor]]:
        """Keys (and values) as they are, (P, F), and side by side, scaled and wide,
        (Z, J, N * T, E)."""
        row_ZN = self.row_XN[here]
        row_P = row_ZN.flatten()
        raw, scaled = [], []
        for i, (table_UTJE, factor_XN) in enumerate(zip(self.tables, self.factors, strict=True)):
            taken_PF = self.raw[i, : len(row_P)]
            torch.index_select(table_UTJE.flatten(1), 0, row_P, out=taken_PF)
            raw.append(taken_PF)
            if self.scaled is not None:
                scaled_PF = self.scaled[i, : len(row_P)]
                if factor_XN is not None:
                    factor_P1 = factor_XN[here].reshape(-1, 1)
                    taken_PF = torch.mul(taken_PF, factor_P1, out=scaled_PF)
                elif self.wide != taken_PF.dtype:
                    taken_PF = scaled_PF.copy_(taken_PF)
            taken_ZIJE = taken_PF.view(len(row_ZN), -1, *table_UTJE.shape[2:])
            scaled.append(taken_ZIJE.transpose(1, 2))
        return raw, scaled
