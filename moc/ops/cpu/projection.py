"""Keys and values of a bank's chapters.

C chapters of the bank, U of them read, T tokens per chapter, M memory width, X width of keys.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from moc.ops.norm import inverse_rms, to_input_gradient_
from moc.ops.shards import is_sharded


def supports(bank_CTM: Tensor, slot_UTM: Tensor | None) -> bool:
    """Gradients that go to a slot, products in the bank's precision, and all of the bank here."""
    if bank_CTM.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    return not (slot_UTM is None or is_sharded(bank_CTM) or torch.is_autocast_enabled("cpu"))


def project(
    bank_CTM: Tensor, chapter_U: Tensor, slot_UTM: Tensor, weight: Tensor, norm_eps: float | None
) -> tuple[Tensor, Tensor]:
    """Keys and values (U, T, X) of the chapters ``chapter_U``, RMS-normalised if ``norm_eps`` is
    given. Chapters are taken from the bank again in the backward pass instead of being kept, and
    their gradient is made where it belongs, in the slot's (see ``moc.ops.rows``).

    Args:
        weight: (2 X, M), the map to keys and that to values.
    """
    k_UTX, v_UTX = _Project.apply(bank_CTM.detach(), chapter_U, slot_UTM, weight, norm_eps)
    return k_UTX, v_UTX


class _Project(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        bank_CTM: Tensor,
        chapter_U: Tensor,
        slot_UTM: Tensor,
        weight: Tensor,
        norm_eps: float | None,
    ) -> tuple[Tensor, Tensor]:
        tokens_UTM, inverse_UT1 = bank_CTM.index_select(0, chapter_U), None
        if norm_eps is not None:
            inverse_UT1 = inverse_rms(tokens_UTM, norm_eps)
            tokens_UTM.mul_(inverse_UT1)
        ctx.save_for_backward(bank_CTM, chapter_U, weight, inverse_UT1)
        ctx.slot_rows = len(slot_UTM)
        of_k_XM, of_v_XM = weight.chunk(2)
        return F.linear(tokens_UTM, of_k_XM), F.linear(tokens_UTM, of_v_XM)

    @staticmethod
    def backward(ctx: Any, grad_k_UTX: Tensor, grad_v_UTX: Tensor) -> tuple[Tensor | None, ...]:
        bank_CTM, chapter_U, weight, inverse_UT1 = ctx.saved_tensors
        tokens_UTM = bank_CTM.index_select(0, chapter_U)
        if inverse_UT1 is not None:
            tokens_UTM.mul_(inverse_UT1)
        tokens_RM = tokens_UTM.flatten(0, 1)
        grad_k_RX, grad_v_RX = (x.reshape(len(tokens_RM), -1) for x in (grad_k_UTX, grad_v_UTX))
        grad_weight = torch.empty_like(weight)
        into_k_XM, into_v_XM = grad_weight.chunk(2)
        torch.mm(grad_k_RX.T, tokens_RM, out=into_k_XM)
        torch.mm(grad_v_RX.T, tokens_RM, out=into_v_XM)
        of_k_XM, of_v_XM = weight.chunk(2)
        grad_slot = bank_CTM.new_empty(
            ctx.slot_rows, *bank_CTM.shape[1:]
        )  # further rows: undefined
        grad_UTM = grad_slot[: len(chapter_U)]
        grad_RM = torch.mm(grad_k_RX, of_k_XM, out=grad_UTM.view(tokens_RM.shape))
        grad_RM.addmm_(grad_v_RX, of_v_XM)
        if inverse_UT1 is not None:
            to_input_gradient_(grad_UTM, tokens_UTM, inverse_UT1)
        return None, None, grad_slot, grad_weight, None
