"""SwiGLU's gate."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def swiglu(gate_up_X: Tensor) -> Tensor:
    """``silu(gate) * up`` of (..., gate and up side by side).

    Keeps its input alone for the backward pass, and makes both gradients side by side.
    """
    gated_X: Tensor = _SwiGLU.apply(gate_up_X)
    return gated_X


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up_X: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up_X)
        gate_X, up_X = gate_up_X.chunk(2, dim=-1)
        return F.silu(gate_X).mul_(up_X)

    @staticmethod
    def backward(ctx: Any, grad_X: Tensor) -> Tensor:
        (gate_up_X,) = ctx.saved_tensors
        gate_X, up_X = gate_up_X.chunk(2, dim=-1)
        grad_gate_up_X = torch.empty_like(gate_up_X)
        into_gate_X, into_up_X = grad_gate_up_X.chunk(2, dim=-1)
        into_up_X.copy_(F.silu(gate_X).mul_(grad_X))
        into_gate_X.copy_(torch.ops.aten.silu_backward(grad_X * up_X, gate_X))
        return grad_gate_up_X
