"""What a forward and a backward pass execute and keep, as PyTorch itself counts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from moc.model import ModelConfig, build_model


def executed_flops_per_token(config: ModelConfig, micro_batch: int, length: int = 24) -> float:
    """Matrix products of one training pass; what never trains has no gradient."""
    model = build_model(config)
    for name, parameter in model.named_parameters():
        fixed = config.memory is not None and config.memory.address == "random"
        parameter.requires_grad_(not (fixed and ".memory.address." in name))
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(config.vocab_size, (micro_batch, length), generator=generator)
    with FlopCounterMode(display=False, custom_mapping=CPU_PRODUCTS) as counter:  # type: ignore[arg-type]
        slots = model.gradient_slots(micro_batch, length)
        counted = torch.ones_like(tokens).bool()
        output = model(tokens, targets_BL=tokens, counted_BL=counted, slots=slots)
        assert output.nll is not None
        output.nll.backward()
    return counter.get_total_flops() / tokens.numel()


def saved_bytes(config: ModelConfig, *, bf16: bool = False) -> int:
    """What autograd keeps of a forward pass over 4 sequences of 64, beside parameters."""
    model = build_model(config)
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    saved: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(config.vocab_size, (4, 64), generator=generator)
    with (
        torch.autocast("cpu", torch.bfloat16, enabled=bf16),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
    ):
        slots = model.gradient_slots(4, 64)
        model(tokens, targets_BL=tokens, counted_BL=tokens >= 0, slots=slots)
    sizes = {p: t.untyped_storage().nbytes() for p, t in saved.items() if p not in parameters}
    return sum(sizes.values())


def product_flops(rows: int, inner: int, columns: int) -> int:
    return 2 * rows * inner * columns


def flash_flops(q_shape: Any, k_shape: Any, *_: Any, **__: Any) -> int:
    """Scores, and their sum of values: (B, H, L, E) queries to (B, J, S, E) keys."""
    batch, num_heads, length, width = q_shape
    return 2 * batch * num_heads * product_flops(length, width, k_shape[2])


def flash_backward_flops(_: Any, q_shape: Any, k_shape: Any, *__: Any, **___: Any) -> int:
    """Scores once more, and the gradients of shares, values, queries and keys."""
    return 5 * flash_flops(q_shape, k_shape) // 2


def addmm_flops(_: Any, left_shape: Any, right_shape: Any, **__: Any) -> int:
    return product_flops(*left_shape, right_shape[1])


# flop_counter knows neither the fused kernels of the CPU nor a product that is added in place
CPU_PRODUCTS = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: flash_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: flash_backward_flops,
    torch.ops.aten.addmm_: addmm_flops,
}
