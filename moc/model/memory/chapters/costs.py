"""What chapters cost, in both accountings; letters as in ``moc.plan.flops``.

G routing groups per sequence, N chapters read, U distinct chapters in a batch.
"""

from __future__ import annotations

from typing import NamedTuple

from moc.model.memory import arithmetic
from moc.model.memory.chapters.sizes import Sizes
from moc.model.memory.seam import Kind, Products
from moc.ops.mixing import MIXINGS
from moc.ops.shapes import BIAS_WIDTH, absorbs, moves_queries


class ExecutedRead(NamedTuple):
    """What ``moc.model.memory.chapters.read`` makes of one memory layer's forward pass."""

    num_groups: int  # of the batch
    num_chapters: int  # U: as many as the batch can read
    grouped: bool  # queries meet chapter after chapter, rather than copies of their group's
    absorbed: bool  # queries and outputs go through the key and value maps, not the chapters
    head_width: int  # of the vectors that meet in attention: E, or M where maps are absorbed
    num_pairs: int  # of a query and a chapter; with copies, a short last group counts in full


def executed_read(
    kind: Kind, sizes: Sizes, context_length: int, batch: int, *, gpu: bool = False
) -> ExecutedRead:
    """The sizes of one layer's read for ``batch`` sequences, whose routing spreads evenly.

    ``gpu``: whose kernels take no heads as wide as some memories, see ``moc.ops.shapes.absorbs``.
    """
    num_tokens = sizes.chapter_tokens
    per_sequence = kind.num_groups(context_length)
    num_groups, num_queries = batch * per_sequence, batch * context_length
    distinct = kind.most_rows_read(batch, context_length)
    absorbed = not sizes.qk_norm and absorbs(
        num_queries=num_queries,
        num_read=kind.num_read,
        num_tokens=num_tokens,
        num_chapters=distinct,
        memory_dim=sizes.memory_dim,
        num_heads=sizes.num_heads,
        num_kv_heads=sizes.num_kv_heads,
        head_dim=sizes.head_dim,
        gpu=gpu,
    )
    grouped = moves_queries(batch, context_length, per_sequence, num_tokens)
    if not grouped and kind.num_picked:
        num_queries = num_groups * kind.group_tokens(context_length)
    return ExecutedRead(
        num_groups=num_groups,
        num_chapters=distinct,
        grouped=grouped,
        absorbed=absorbed,
        head_width=sizes.memory_dim if absorbed else sizes.head_dim,
        num_pairs=num_queries * kind.num_read,
    )


def products(kind: Kind, sizes: Sizes, context_length: int, batch: int, *, gpu: bool) -> Products:
    """See ``Kind``. A batch is taken to read as many distinct chapters as it can, and positions
    that are sorted by chapter as needing no padding, of which there is at most a seventh."""
    tokens = batch * context_length
    read = executed_read(kind, sizes, context_length, batch, gpu=gpu)
    num_tokens = sizes.chapter_tokens
    if read.absorbed:
        maps = 2 * arithmetic.linear(tokens, sizes.dim, sizes.memory_dim)
    else:
        chapter_tokens = read.num_chapters * num_tokens
        maps = 2 * arithmetic.linear(chapter_tokens, sizes.memory_dim, sizes.kv_width)
    linear = (2 + sizes.gated) * arithmetic.linear(tokens, sizes.dim, sizes.dim) + maps
    if kind.router is not None:
        linear += arithmetic.linear(read.num_groups, sizes.dim, kind.num_rows)
    head_width, mixing, saved = read.head_width, MIXINGS[sizes.mixing], 0
    if not read.grouped and mixing.score_bias:
        head_width += BIAS_WIDTH
    if not read.grouped and mixing.per_chapter:
        mixed = arithmetic.linear(read.num_pairs, 1, sizes.num_heads * head_width)
        linear += mixed
        if kind.router is None:
            saved += mixed  # without a router the mixing weights need no gradient
    scores = read.num_pairs * num_tokens * sizes.num_heads
    return Products(linear, 4 * scores * head_width, saved)


def paper_flops(kind: Kind, sizes: Sizes, context_length: int, batch: int) -> int:
    """See ``Kind``. The three mixings count alike, and every chapter is projected for every
    sequence that reads it. The paper routes whole sequences; of several routing groups, each
    chooses and weights its own chapters, and a sequence's share projections."""
    tokens = batch * context_length
    num_groups, num_tokens = kind.num_groups(context_length), sizes.chapter_tokens
    groups = batch * num_groups
    read = kind.num_read * num_tokens  # tokens per group
    projected = batch * kind.most_rows_read(1, context_length) * num_tokens
    total = 2 * arithmetic.linear(tokens, sizes.dim, sizes.dim)
    total += 2 * arithmetic.linear(projected, sizes.memory_dim, sizes.kv_width)
    total += arithmetic.attention(batch, context_length, read, sizes.dim, sizes.num_heads)
    if sizes.qk_norm:
        total += arithmetic.norm(tokens * sizes.num_heads, sizes.head_dim)
        total += arithmetic.norm(projected * sizes.num_kv_heads, sizes.head_dim)
    if sizes.gated:
        total += arithmetic.linear(tokens, sizes.dim, sizes.dim) + 5 * tokens * sizes.dim
    if not kind.num_picked:
        return total
    total += groups * read * sizes.memory_dim  # weighting
    if sizes.num_shared:
        total += arithmetic.norm(projected, sizes.memory_dim)
    if kind.router is None:
        return total
    chapters = kind.num_rows
    total += batch * sizes.dim * _pooling(kind, context_length)
    total += arithmetic.linear(groups, sizes.dim, chapters)
    total += arithmetic.softmax(groups * chapters)
    total += arithmetic.top_k(groups, chapters, kind.num_picked)
    return total + _paper_router_losses(groups, chapters, kind.num_picked)


def _pooling(kind: Kind, context_length: int) -> int:
    """Operations per dim to pool one sequence for its router."""
    router, num_groups = kind.router, kind.num_groups(context_length)
    assert router is not None
    match router.scope:
        case "sequence":
            return context_length  # L - 1 additions and a division
        case "segment":
            # running sums up to the last segment's first position, and a division per segment;
            # a limited look-back takes the difference of two running sums
            width, window = router.segment_tokens, router.window_tokens
            last = (num_groups - 1) * width
            limited = 0
            if window is not None:
                limited = sum(start >= window for start in range(0, last + 1, width))
            return last + num_groups + limited
        case _:
            return 0  # a token's router reads that token


def _paper_router_losses(groups: int, chapters: int, num_routed: int) -> int:
    """Statistics and losses of one router over ``groups`` routing groups."""
    mean = chapters * (groups - 1) + chapters
    load = groups * chapters * (num_routed - 1) + mean
    balance = mean + 2 * chapters
    squared_mean = groups * chapters + mean
    mse, entropy = 3 * chapters, 4 * groups * chapters
    z_loss = 5 * groups * chapters + 2 * groups
    return load + balance + squared_mean + mse + z_loss + entropy


def activation_bytes(kind: Kind, sizes: Sizes, context_length: int, batch: int, width: int) -> int:
    """See ``Kind``."""
    tokens, dim, num_heads = batch * context_length, sizes.dim, sizes.num_heads
    read = executed_read(kind, sizes, context_length, batch)
    queries = read.num_pairs // kind.num_read
    # inputs of the q and output maps, and if the key and value maps take them, q and outputs
    kept = tokens * width * (2 + read.absorbed + 3 * sizes.gated + sizes.qk_norm) * dim
    normalised = sizes.normalises_tokens
    if kind.router is not None:
        kept += 4 * read.num_groups * (dim + 2 * kind.num_rows)  # input, logits, shares
    if read.grouped:  # log-sum-exp, index and weight; q, and outputs, unless they are counted
        kept += read.num_pairs * (4 * num_heads + 8 + 4)
        kept += width * tokens * num_heads * read.head_width * (1 + read.absorbed)
        if read.absorbed:
            return kept  # chapters are fetched again
    elif read.absorbed:
        kept += width * tokens * num_heads * read.head_width  # outputs, in order
    chapter_tokens = read.num_chapters * sizes.chapter_tokens
    if width == 4 and not read.absorbed:  # chapters are fetched again
        kept += 4 * chapter_tokens * normalised
    else:  # chapters, and what their maps take in
        kept += chapter_tokens * sizes.memory_dim * (4 if width == 4 else 4 * normalised + width)
    mixing = MIXINGS[sizes.mixing]
    if not read.absorbed and (read.grouped or mixing.score_bias is None):
        kept += width * chapter_tokens * 2 * sizes.kv_width
    if read.grouped:
        return kept
    vectors = num_heads * read.head_width
    if mixing.per_chapter:  # of each; outputs once more, for the gradients of the weights
        copies = 3 if kind.num_picked else 2
        return kept + read.num_pairs * (copies * width * vectors + 4 * num_heads)
    if mixing.score_bias:  # queries, outputs, keys and values, all of them wider
        head_width = read.head_width + BIAS_WIDTH
        num_kv_heads = 1 if read.absorbed else sizes.num_kv_heads
        taken = read.num_groups * kind.num_read * sizes.chapter_tokens
        kept += 2 * width * head_width * (queries * num_heads + taken * num_kv_heads)
        return kept + 4 * queries * num_heads
    return kept + queries * (2 * width * vectors + 4 * num_heads)  # queries, outputs
