"""How much memory a forward pass keeps for its backward pass. Letters as in ``moc.flops``."""

from __future__ import annotations

from moc.flops import chapters_read, executed_read, kv_dim, memory_kv_dim, parameter_counts
from moc.model.config import MemoryConfig, ModelConfig


def activation_bytes(
    config: ModelConfig, context_length: int, micro_batch: int, *, bf16: bool = False
) -> int:
    """Roughly what a forward pass keeps for its backward pass, on one device.

    Counted: what autograd saves (norms and routing in float32, the rest in the compute precision),
    three float32 copies of the logits (values, softmax, gradient), and bfloat16 copies of the
    weights.
    """
    dim, tokens, width = config.dim, micro_batch * context_length, 2 if bf16 else 4
    mlp = 2 * 4 * dim + width * (dim + 4 * config.mlp_dim)
    block = tokens * (2 * 4 * dim + width * (3 * dim + 2 * kv_dim(config)) + mlp)
    read = 0
    memory = config.memory
    if memory is not None:
        read = _read_bytes(config, memory, context_length, micro_batch, width)
        if memory.variant == "B":
            read += tokens * mlp
    num_reads = len(config.memory_layers())
    if config.activation_checkpointing:
        kept = config.num_layers * tokens * 4 * dim + block + read
    else:
        kept = config.num_layers * block + num_reads * read
    counts = parameter_counts(config)
    weights = 2 * (counts.backbone + counts.memory_layers) if bf16 else 0
    return kept + weights + tokens * (3 * 4 * dim + 12 * config.vocab_size)


def _read_bytes(
    config: ModelConfig, memory: MemoryConfig, context_length: int, batch: int, width: int
) -> int:
    """What one memory layer keeps."""
    dim, tokens = config.dim, batch * context_length
    num_heads, kv_width = memory.num_heads or config.num_heads, memory_kv_dim(config, memory)
    num_read, chapter_tokens = chapters_read(memory), memory.chapter_tokens
    sizes = executed_read(memory, context_length, batch)
    kept = tokens * (2 * 4 * dim + width * 2 * dim)  # norm; inputs of the q and output maps
    kept += sizes.num_chapters * chapter_tokens * (memory.dim or dim) * (4 + width)
    if memory.num_routed is not None:
        kept += 2 * 4 * sizes.num_groups * memory.num_chapters  # logits, probabilities
    if sizes.num_blocks:
        kept += sizes.num_pairs * width * (dim + num_heads * chapter_tokens)  # queries, shares
        kept += 2 * sizes.num_blocks * chapter_tokens * kv_width * width
        scores = tokens * num_read * num_heads * chapter_tokens
        # softmax and its weighted copy in float32; "joint" also keeps the scores it weights
        return kept + scores * (8 + width * (memory.mixing == "joint"))
    queries = sizes.num_pairs // num_read
    taken = sizes.num_groups * num_read * chapter_tokens
    match memory.mixing:
        case "joint":  # queries, outputs; keys and values as they are and weighted
            if sizes.num_groups == batch:  # their outputs feed the output map as they are
                kept -= width * tokens * dim
            return kept + width * (2 * queries * dim + 4 * taken * kv_width)
        case "per_chapter":  # queries and outputs of each chapter; keys, values
            return kept + width * (2 * sizes.num_pairs * dim + 2 * taken * kv_width)
        case "log_bias":  # a bias that needs a gradient is not fused: every head's keys, scores
            scores = sizes.num_pairs * num_heads * chapter_tokens
            return kept + width * (queries * dim + 2 * taken * dim) + 4 * scores
