"""``moc.ops.cpu.grouped`` to the tokens of a bank: both keys and values, for every head.

Chapters are fetched and normalised a bucket at a time, and so are their gradients made, which go to
a slot (see ``Transformer.gradient_slots``): nothing of the bank's size comes into being.

B batch, L length, X = B * L positions, H heads, M memory width, C chapters of the bank, U of them
read, T tokens per chapter, G routing groups per sequence, N chapters per position.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from moc.ops.cpu.grouped import by_position
from moc.ops.cpu.passes import backward_pass, forward_pass
from moc.ops.cpu.plan import Plan, plan_groups
from moc.ops.cpu.sources import BankSource
from moc.ops.mixing import MIXINGS, Mixing, differentiable
from moc.ops.shapes import moves_queries
from moc.ops.shards import is_sharded


def supports(
    q_BLHM: Tensor, bank_CTM: Tensor, slot_UTM: Tensor | None, num_groups: int, mixing: Mixing
) -> bool:
    """Short groups, a bank that is all here, and gradients that are written down and, if the bank
    trains, go to a slot."""
    if q_BLHM.device.type != "cpu" or torch.compiler.is_compiling() or is_sharded(bank_CTM):
        return False
    if slot_UTM is None and torch.is_grad_enabled() and bank_CTM.requires_grad:
        return False
    batch, length = q_BLHM.shape[:2]
    return moves_queries(batch, length, num_groups, bank_CTM.shape[1]) and differentiable(mixing)


def attend(
    q_BLHM: Tensor,
    bank_CTM: Tensor,
    chapter_U: Tensor,
    slot_UTM: Tensor | None,
    row_BGN: Tensor,
    weight_BGN: Tensor,
    *,
    mixing: str,
    group_tokens: int,
    scale: float,
    norm_eps: float | None,
) -> Tensor:
    """``absorbed_attention``, where ``supports``."""
    row_XN, weight_XN = by_position(q_BLHM, row_BGN, weight_BGN, group_tokens)
    q_XHM, bank_CTM = q_BLHM.flatten(0, 1), bank_CTM.detach()
    out_XHM: Tensor = _GroupedBank.apply(
        q_XHM, bank_CTM, chapter_U, slot_UTM, row_XN, weight_XN, mixing, scale, norm_eps
    )
    return out_XHM.view(q_BLHM.shape)


class _GroupedBank(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q_XHM: Tensor,
        bank_CTM: Tensor,
        chapter_U: Tensor,
        slot_UTM: Tensor | None,
        row_XN: Tensor,
        weight_XN: Tensor,
        mixing: str,
        scale: float,
        norm_eps: float | None,
    ) -> Tensor:
        plan = _plan(q_XHM, bank_CTM, chapter_U, row_XN)
        source = BankSource(bank_CTM, chapter_U, 0, norm_eps, plan)
        out_XHM, lse_XHN = forward_pass(q_XHM, source, plan, weight_XN, MIXINGS[mixing], scale)
        ctx.save_for_backward(q_XHM, bank_CTM, chapter_U, row_XN, weight_XN, out_XHM, lse_XHN)
        ctx.settings = mixing, scale, norm_eps, 0 if slot_UTM is None else len(slot_UTM)
        return out_XHM

    @staticmethod
    def backward(ctx: Any, grad_XHM: Tensor) -> tuple[Tensor | None, ...]:
        q_XHM, bank_CTM, chapter_U, row_XN, weight_XN, out_XHM, lse_XHN = ctx.saved_tensors
        mixing, scale, norm_eps, slot_rows = ctx.settings
        plan = _plan(q_XHM, bank_CTM, chapter_U, row_XN)
        source = BankSource(bank_CTM, chapter_U, slot_rows, norm_eps, plan)
        grad_q, grad_weight = backward_pass(
            grad_XHM, q_XHM, source, plan, weight_XN, out_XHM, lse_XHN, MIXINGS[mixing], scale
        )
        return grad_q, None, None, source.grad_UTM, None, grad_weight, None, None, None


def _plan(q_XHM: Tensor, bank_CTM: Tensor, chapter_U: Tensor, row_XN: Tensor) -> Plan:
    return plan_groups(
        row_XN,
        num_chapters=len(chapter_U),
        num_tokens=bank_CTM.shape[1],
        num_heads=q_XHM.shape[1],
        num_kv_heads=1,
    )
