"""How much memory a forward pass keeps for its backward pass. Letters as in ``moc.plan.flops``."""

from __future__ import annotations

from moc.model.config import MemoryConfig, ModelConfig
from moc.ops.mixing import MIXINGS
from moc.ops.shapes import BIAS_WIDTH
from moc.plan.flops import chapters_read, executed_read, kv_dim, memory_kv_dim, parameter_counts


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
    return kept + weights + tokens * norm + 4 * config.vocab_size * dim


def _read_bytes(
    config: ModelConfig, memory: MemoryConfig, context_length: int, batch: int, width: int
) -> int:
    """What one memory layer keeps."""
    dim, tokens = config.dim, batch * context_length
    num_heads, memory_dim = memory.num_heads or config.num_heads, memory.dim or dim
    sizes = executed_read(config, memory, context_length, batch)
    queries = sizes.num_pairs // chapters_read(memory)
    # norm; inputs of the q and output maps, and if the key and value maps take them, q and outputs
    kept = tokens * (4 * dim + width * (2 + sizes.absorbed) * dim)
    normalised = False
    if memory.num_routed is not None:
        normalised = memory.num_shared > 0
        kept += 4 * sizes.num_groups * (dim + 2 * memory.num_chapters)  # input, logits, shares
    if sizes.grouped:  # log-sum-exp, index and weight; q, and outputs, unless they are counted
        kept += sizes.num_pairs * (4 * num_heads + 8 + 4)
        kept += width * tokens * num_heads * sizes.head_width * (1 + sizes.absorbed)
        if sizes.absorbed:
            return kept  # chapters are fetched again
    elif sizes.absorbed:
        kept += width * tokens * num_heads * sizes.head_width  # outputs, in order
    chapter_tokens = sizes.num_chapters * memory.chapter_tokens
    if width == 4 and not sizes.absorbed:  # chapters are fetched again
        kept += 4 * chapter_tokens * normalised
    else:  # chapters, and what their maps take in
        kept += chapter_tokens * memory_dim * (4 if width == 4 else 4 * normalised + width)
    mixing = MIXINGS[memory.mixing]
    if not sizes.absorbed and (sizes.grouped or mixing.score_bias is None):
        kept += width * chapter_tokens * 2 * memory_kv_dim(config, memory)
    if sizes.grouped:
        return kept
    vectors = num_heads * sizes.head_width
    if mixing.per_chapter:  # of each; outputs once more, for the gradients of the weights
        copies = 2 if memory.num_routed is None else 3
        return kept + sizes.num_pairs * (copies * width * vectors + 4 * num_heads)
    if mixing.score_bias:  # queries, outputs, keys and values, all of them wider
        head_width = sizes.head_width + BIAS_WIDTH
        num_kv_heads = 1 if sizes.absorbed else memory.num_kv_heads or num_heads
        taken = sizes.num_groups * chapters_read(memory) * memory.chapter_tokens
        kept += 2 * width * head_width * (queries * num_heads + taken * num_kv_heads)
        return kept + 4 * queries * num_heads
    return kept + queries * (2 * width * vectors + 4 * num_heads)  # queries, outputs
