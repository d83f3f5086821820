"""Which of the ways of routed attention runs. No torch: FLOP counts ask too.

L length, G routing groups per sequence, T tokens per chapter, U distinct chapters of the batch,
M memory width, E head dim.
"""

from __future__ import annotations

MIN_QUERIES = 64
MAX_FUSED_WIDTH = 256  # of a head, in the fused kernels of GPUs
BIAS_WIDTH = 8  # columns that carry log_bias's bias: fused kernels want head widths in eights


def moves_queries(batch: int, length: int, num_groups: int, num_tokens: int) -> bool:
    """Whether queries go to their chapters, rather than chapters to their queries.

    They do where groups are short, for a chapter of T tokens would be copied for far fewer queries;
    but not for a handful of queries, whose chapters have no other reader.
    """
    return 4 * length <= num_groups * num_tokens and batch * length >= MIN_QUERIES


def absorbs(
    *,
    num_queries: int,
    num_read: int,
    num_tokens: int,
    num_chapters: int,
    memory_dim: int,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    gpu: bool = False,
) -> bool:
    """Whether it takes fewer multiply-adds to put the key and value maps on the queries' side.

    Projected, U chapters of T tokens pass through both maps once, and every query meets keys and
    values of width E per head. Absorbed, q.(mW) = (qW').m: every query (and every output) passes
    through a map, and meets the tokens themselves, of width M per head. Backward passes double
    both. Chosen only where it saves a quarter: its products are the slower ones. On a GPU also only
    where its fused attention takes heads of width M.
    """
    if gpu and memory_dim > MAX_FUSED_WIDTH:
        return False
    scores = num_queries * num_read * num_tokens * num_heads
    projected = 2 * num_chapters * num_tokens * memory_dim * num_kv_heads * head_dim
    projected += 2 * scores * head_dim
    absorbed = 2 * num_queries * num_heads * head_dim * memory_dim + 2 * scores * memory_dim
    return absorbed < 0.75 * projected
