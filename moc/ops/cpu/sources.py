"""Where grouped attention takes a bucket's keys and values from, and leaves their gradients.

Letters as in ``moc.ops.cpu.grouped``.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from moc.ops.cpu.plan import Bucket, Plan
from moc.ops.norm import inverse_rms, to_input_gradient_


class Source(Protocol):
    """Where a bucket's keys and values (Z, T, E) come from, and their gradients go: in a dtype that
    is no narrower than theirs."""

    def fetch(self, bucket: Bucket, wide: torch.dtype) -> tuple[Tensor, Tensor]: ...

    def store(self, bucket: Bucket, grad_k_ZTE: Tensor, grad_v_ZTE: Tensor) -> None: ...


class ProjectedSource:
    """Keys and values of all chapters lie there."""

    def __init__(self, k_UTJE: Tensor, v_UTJE: Tensor | None, plan: Plan) -> None:
        self.tables = [k_UTJE] if v_UTJE is None else [k_UTJE, v_UTJE]
        self.plan = plan
        self.grads: list[Tensor] = []

    def fetch(self, bucket: Bucket, wide: torch.dtype) -> tuple[Tensor, Tensor]:
        members_A = self.plan.members(bucket)
        taken = [
            table.index_select(0, members_A).to(wide).transpose(1, 2).flatten(0, 1)
            for table in self.tables
        ]
        return taken[0], taken[-1]

    def store(self, bucket: Bucket, grad_k_ZTE: Tensor, grad_v_ZTE: Tensor) -> None:
        if not self.grads:  # those of chapters without a reader are zero
            self.grads = [torch.zeros(x.shape, dtype=x.dtype, device=x.device) for x in self.tables]
        parts = [grad_k_ZTE, grad_v_ZTE]
        if len(self.tables) == 1:
            parts = [grad_k_ZTE.add_(grad_v_ZTE)]
        for grad_UTJE, grad_ZTE in zip(self.grads, parts, strict=True):
            grad_ATJE = grad_ZTE.unflatten(0, (bucket.num, -1)).transpose(1, 2)
            grad_UTJE.index_copy_(0, self.plan.members(bucket), grad_ATJE.to(grad_UTJE.dtype))


class BankSource:
    """Tokens of a bank, for one head that all share."""

    def __init__(
        self, bank_CTM: Tensor, chapter_U: Tensor, slot_rows: int, eps: float | None, plan: Plan
    ) -> None:
        self.bank_CTM, self.chapter_U, self.eps, self.plan = bank_CTM, chapter_U, eps, plan
        self.normed_ATM = self.inverse_AT1 = bank_CTM[:0]
        # every one of chapter_U has a reader; rows beyond them mean nothing; a frozen bank has none
        self.grad_UTM = bank_CTM.new_empty(slot_rows, *bank_CTM.shape[1:]) if slot_rows else None

    def fetch(self, bucket: Bucket, wide: torch.dtype) -> tuple[Tensor, Tensor]:
        member_A = self.chapter_U[self.plan.members(bucket)]
        taken_ATM = self.bank_CTM.index_select(0, member_A).to(wide)
        if self.eps is not None:
            self.inverse_AT1 = inverse_rms(taken_ATM, self.eps)
            taken_ATM.mul_(self.inverse_AT1)
        self.normed_ATM = taken_ATM
        return taken_ATM, taken_ATM

    def store(self, bucket: Bucket, grad_k_ZTE: Tensor, grad_v_ZTE: Tensor) -> None:
        if self.grad_UTM is None:
            return
        grad_ATM = grad_k_ZTE.add_(grad_v_ZTE)
        if self.eps is not None:
            to_input_gradient_(grad_ATM, self.normed_ATM, self.inverse_AT1)
        grad_ATM = grad_ATM.to(self.grad_UTM.dtype)
        self.grad_UTM.index_copy_(0, self.plan.members(bucket), grad_ATM)
