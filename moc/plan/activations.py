"""How much memory a forward pass keeps for its backward pass. Letters as in ``moc.plan.flops``."""

from __future__ import annotations

from moc.model.config import ModelConfig
from moc.model.memory.build import build_memory
from moc.plan.flops import kv_dim, parameter_counts


def activation_bytes(
    config: ModelConfig, context_length: int, micro_batch: int, *, bf16: bool = False
) -> int:
    """Roughly what a forward pass with its loss keeps for the backward pass, on one device.

    Counted: what autograd saves of eager code on a CPU (norms and routing in float32, the rest in
    the compute precision), which for the loss are gradients, and bfloat16 copies of the weights.
    """
    dim, tokens, width = config.dim, micro_batch * context_length, 2 if bf16 else 4
    # a norm's output without its scale; what its maps take in
    norm = (4 + width) * dim
    mlp = norm + width * 3 * config.mlp_dim
    # q and k rotated, v, outputs, log-sum-exp
    attention = norm + width * (2 * dim + 2 * kv_dim(config)) + 4 * config.num_heads
    block = tokens * (attention + mlp)
    read = 0
    memory = config.memory
    if memory is not None:
        read = build_memory(config).activation_bytes(context_length, micro_batch, width)
        read += tokens * 4 * dim  # norm
        if memory.variant == "B":
            read += tokens * mlp
    num_reads = len(config.memory_layers())
    if config.activation_checkpointing:
        kept = config.num_layers * tokens * 4 * dim + block + read
    else:
        kept = config.num_layers * block + num_reads * read
    counts = parameter_counts(config)
    weights = 2 * (counts.backbone + counts.memory_layers) if bf16 else 0
    return kept + weights + tokens * norm + 4 * config.vocab_size * dim
