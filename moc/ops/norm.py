"""Root-mean-square normalisation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def rms_norm(x_D: Tensor, weight_D: Tensor | None, eps: float) -> Tensor:
    """``x / sqrt(mean(x^2) + eps)`` over the last dimension, times ``weight_D``, in x's dtype.

    GPUs have a fused kernel, and the compiler makes one. Eager PyTorch on a CPU runs a dozen passes
    over the data and keeps four copies of it; this runs half of them and keeps one.
    """
    if x_D.device.type != "cpu" or torch.compiler.is_compiling():
        return F.rms_norm(x_D, x_D.shape[-1:], weight_D, eps)
    normed_D: Tensor = _Normalise.apply(x_D, eps)
    return normed_D if weight_D is None else normed_D * weight_D


def inverse_rms(x_D: Tensor, eps: float) -> Tensor:
    """What RMSNorm multiplies ``x_D`` by, (..., 1)."""
    norm_1 = torch.linalg.vector_norm(x_D, dim=-1, keepdim=True)
    return norm_1.square_().div_(x_D.shape[-1]).add_(eps).rsqrt_()


def to_input_gradient_(grad_D: Tensor, normed_D: Tensor, inverse_1: Tensor) -> Tensor:
    """Turns the gradient of RMSNorm's output, in place, into that of its input."""
    # the mean over the last dimension of grad * normed, without a copy of the product
    dot_1 = torch.linalg.vecdot(grad_D, normed_D)[..., None].div_(normed_D.shape[-1])
    return grad_D.addcmul_(normed_D, dot_1, value=-1).mul_(inverse_1)


class _Normalise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_D: Tensor, eps: float) -> Tensor:
        inverse_1 = inverse_rms(x_D, eps)
        normed_D = x_D * inverse_1
        ctx.save_for_backward(normed_D, inverse_1)
        return normed_D

    @staticmethod
    def backward(ctx: Any, grad_D: Tensor) -> tuple[Tensor, None]:
        return to_input_gradient_(grad_D.clone(), *ctx.saved_tensors), None
