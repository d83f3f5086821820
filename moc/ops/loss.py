"""Cross-entropy of a linear map's outputs, whose logits never exist at once.

X positions, D model dim, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# Logits per chunk: on a CPU as many as stay in its caches, on a GPU enough for full matrix products
# (a quarter of a gigabyte in float32).
_CPU_LOGITS, _GPU_LOGITS = 2**20, 2**26


def linear_cross_entropy(
    x_XD: Tensor, weight_VD: Tensor, target_X: Tensor, counted_X: Tensor
) -> Tensor:
    """Sum of -log softmax(x W^T)[target] over the positions where ``counted_X`` is set, in nats.

    Logits are products in the precision of autocast (or of ``x_XD``), softmax and sum in float32
    (float64 for float64). Gradients are made in the forward pass, chunk by chunk, so that the
    logits are neither kept nor made twice; a backward pass only scales them.

    Args:
        target_X: int64.
        counted_X: bool.

    Returns:
        scalar, float32 or float64.
    """
    dtype = x_XD.dtype
    if torch.is_autocast_enabled(x_XD.device.type):
        dtype = torch.get_autocast_dtype(x_XD.device.type)
    if not torch.is_grad_enabled():
        x_XD, weight_VD = x_XD.detach(), weight_VD.detach()  # or their gradients would be made
    nll: Tensor = _LinearCrossEntropy.apply(x_XD.to(dtype), weight_VD, target_X, counted_X)
    return nll


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_XD: Tensor, weight_VD: Tensor, target_X: Tensor, counted_X: Tensor
    ) -> Tensor:
        wide = torch.float64 if x_XD.dtype == torch.float64 else torch.float32
        needs_x, needs_weight = ctx.needs_input_grad[:2]
        narrow_VD = weight_VD.to(x_XD.dtype)
        grad_x_XD = torch.empty_like(x_XD) if needs_x else None
        grad_weight_VD = torch.zeros_like(weight_VD, dtype=wide) if needs_weight else None
        nll = x_XD.new_zeros((), dtype=wide)
        most = _CPU_LOGITS if x_XD.device.type == "cpu" else _GPU_LOGITS
        size = max(1, most // len(weight_VD))
        with torch.autocast(x_XD.device.type, enabled=False):
            for start in range(0, len(x_XD), size):
                here = slice(start, start + size)
                target_K1, counted_K1 = target_X[here, None], counted_X[here, None]
                logprobs_KV = (x_XD[here] @ narrow_VD.T).to(wide).log_softmax(-1)
                nll -= (logprobs_KV.gather(1, target_K1) * counted_K1).sum()
                if not (needs_x or needs_weight):
                    continue
                # d nll / d logits = softmax - one-hot
                grad_KV = logprobs_KV.exp_()
                grad_KV.scatter_add_(1, target_K1, -torch.ones_like(target_K1, dtype=wide))
                narrow_KV = grad_KV.mul_(counted_K1).to(x_XD.dtype)
                if grad_x_XD is not None:
                    grad_x_XD[here] = narrow_KV @ narrow_VD
                if grad_weight_VD is not None:
                    if narrow_KV.dtype == wide:
                        grad_weight_VD.addmm_(narrow_KV.T, x_XD[here])
                    else:
                        grad_weight_VD += narrow_KV.T @ x_XD[here]
        ctx.save_for_backward(grad_x_XD, grad_weight_VD)
        return nll

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        grad_x_XD, grad_weight_VD = ctx.saved_tensors
        scaled_XD = None if grad_x_XD is None else (grad_x_XD * grad).to(grad_x_XD.dtype)
        scaled_VD = None if grad_weight_VD is None else grad_weight_VD * grad
        return scaled_XD, scaled_VD, None, None
