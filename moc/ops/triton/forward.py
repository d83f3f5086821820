"""Triton kernels of routed attention: outputs.

Letters as in ``moc.ops.triton.parts``.
"""

from __future__ import annotations

import triton
import triton.language as tl

from moc.ops.triton.parts import (
    VARYING,
    chapter_rows,
    group_rows,
    load_rows,
    scores,
    shares_of_values,
    slots_of_run,
    store_rows,
)


@triton.jit(do_not_specialize=VARYING)
def group_forward(
    q_ptr, k_ptr, v_ptr, row_ptr, weight_ptr, out_ptr, lse_ptr, num_groups, length, group_tokens,
    num_read, num_tiles, scale,
    T: tl.constexpr, J: tl.constexpr, R: tl.constexpr, E: tl.constexpr,
    PER_CHAPTER: tl.constexpr, A: tl.constexpr, B: tl.constexpr, C: tl.constexpr,
    TINY: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """A tile of one group's rows reads the group's chapters in turn: one program of X * J * tiles.

    Writes outputs (B, L, H, E) and, of a softmax over all chapters, log-sum-exps (B, L, H).
    """
    program = tl.program_id(0)
    group, kv_head = program // num_tiles // J, program // num_tiles % J
    query_M, valid_M = group_rows(
        group, kv_head, program % num_tiles, num_groups, length, group_tokens, J, R, BLOCK_M
    )
    q_ME = load_rows(q_ptr, query_M, valid_M, E, BLOCK_E)
    token_T = tl.arange(0, BLOCK_T)
    top_M = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total_M = tl.zeros((BLOCK_M,), tl.float32)
    out_ME = tl.zeros((BLOCK_M, BLOCK_E), tl.float32)
    for n in range(num_read):
        chapter = tl.load(row_ptr + group * num_read + n)
        weight = tl.load(weight_ptr + group * num_read + n).to(tl.float32)
        weight_M = tl.zeros((BLOCK_M,), tl.float32) + weight
        memory_T = (chapter.to(tl.int64) * T + token_T) * J + kv_head
        k_TE = load_rows(k_ptr, memory_T, token_T < T, E, BLOCK_E)
        v_TE = load_rows(v_ptr, memory_T, token_T < T, E, BLOCK_E)
        _, score_MT = scores(q_ME, k_TE, weight_M, scale, T, A, B, TINY, BLOCK_T)
        highest_M = tl.max(score_MT, 1)
        if PER_CHAPTER:
            share_MT = tl.exp2(score_MT - highest_M[:, None])
            one_M = tl.full((BLOCK_M,), 1.0, tl.float32)
            share_M = shares_of_values(one_M, weight_M, C) / tl.sum(share_MT, 1)
            share_MT = share_MT * share_M[:, None]
        else:
            new_top_M = tl.maximum(top_M, highest_M)
            shrink_M = tl.exp2(top_M - new_top_M)
            share_MT = tl.exp2(score_MT - new_top_M[:, None])
            total_M = total_M * shrink_M + tl.sum(share_MT, 1)
            out_ME = out_ME * shrink_M[:, None]
            top_M = new_top_M
            share_MT = shares_of_values(share_MT, weight, C)
        out_ME += tl.dot(share_MT.to(v_TE.dtype), v_TE, input_precision="ieee")
    if not PER_CHAPTER:
        out_ME = out_ME / total_M[:, None]
        tl.store(lse_ptr + query_M, top_M + tl.log2(total_M), mask=valid_M)
    store_rows(out_ptr, query_M, valid_M, out_ME, E, BLOCK_E)


@triton.jit(do_not_specialize=VARYING)
def chapter_forward(
    q_ptr, k_ptr, v_ptr, weight_ptr, order_ptr, offset_ptr, first_run_ptr, chapter_ptr, out_ptr,
    lse_ptr, num_groups, length, group_tokens, num_read, num_chapters, run_slots, scale,
    T: tl.constexpr, J: tl.constexpr, R: tl.constexpr, E: tl.constexpr,
    PER_CHAPTER: tl.constexpr, A: tl.constexpr, B: tl.constexpr, C: tl.constexpr,
    TINY: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """A run of the pairs that read one chapter, tile by tile: one program of runs * J.

    Each pair's own softmax: outputs (B, L, N, H, E) and log-sum-exps (B, L, N, H).
    """
    run, kv_head = tl.program_id(0) // J, tl.program_id(0) % J
    chapter = tl.load(chapter_ptr + run)
    if chapter >= num_chapters:
        return
    begin, end = slots_of_run(run, chapter, offset_ptr, first_run_ptr, group_tokens, run_slots)
    if begin >= end:
        return
    token_T = tl.arange(0, BLOCK_T)
    memory_T = (chapter.to(tl.int64) * T + token_T) * J + kv_head
    k_TE = load_rows(k_ptr, memory_T, token_T < T, E, BLOCK_E)
    v_TE = load_rows(v_ptr, memory_T, token_T < T, E, BLOCK_E)
    for first_row in range(begin * R, end * R, BLOCK_M):
        query_M, pair_M, entry_M, valid_M = chapter_rows(
            first_row, end * R, kv_head, order_ptr,
            num_groups, length, group_tokens, num_read, J, R, BLOCK_M,
        )  # fmt: skip
        q_ME = load_rows(q_ptr, query_M, valid_M, E, BLOCK_E)
        weight_M = tl.load(weight_ptr + entry_M, mask=valid_M, other=0.0).to(tl.float32)
        _, score_MT = scores(q_ME, k_TE, weight_M, scale, T, A, B, TINY, BLOCK_T)
        highest_M = tl.max(score_MT, 1)
        share_MT = tl.exp2(score_MT - highest_M[:, None])
        total_M = tl.sum(share_MT, 1)
        out_ME = tl.dot(share_MT.to(v_TE.dtype), v_TE, input_precision="ieee")
        store_rows(out_ptr, pair_M, valid_M, out_ME / total_M[:, None], E, BLOCK_E)
        if not PER_CHAPTER:
            tl.store(lse_ptr + pair_M, highest_M + tl.log2(total_M), mask=valid_M)


@triton.jit(do_not_specialize=VARYING)
def combine(
    pair_out_ptr, pair_lse_ptr, weight_ptr, out_ptr, lse_ptr, num_groups, length, group_tokens,
    num_read,
    H: tl.constexpr, E: tl.constexpr, PER_CHAPTER: tl.constexpr, C: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """One position's pairs, from ``chapter_forward``, into its output: one program of B * L."""
    position = tl.program_id(0).to(tl.int64)
    group = position // length * num_groups + position % length // group_tokens
    head_H = tl.arange(0, BLOCK_H)
    valid_H = head_H < H
    top_H = tl.full((BLOCK_H,), float("-inf"), tl.float32)
    total_H = tl.zeros((BLOCK_H,), tl.float32)
    out_HE = tl.zeros((BLOCK_H, BLOCK_E), tl.float32)
    for n in range(num_read):
        pair_H = (position * num_read + n) * H + head_H
        weight = tl.load(weight_ptr + group * num_read + n).to(tl.float32)
        chapter_HE = load_rows(pair_out_ptr, pair_H, valid_H, E, BLOCK_E).to(tl.float32)
        if PER_CHAPTER:
            out_HE += shares_of_values(chapter_HE, weight, C)
        else:
            lse_H = tl.load(pair_lse_ptr + pair_H, mask=valid_H, other=0.0)
            new_top_H = tl.maximum(top_H, lse_H)
            shrink_H = tl.exp2(top_H - new_top_H)
            share_H = tl.exp2(lse_H - new_top_H)
            total_H = total_H * shrink_H + share_H
            top_H = new_top_H
            share_H = shares_of_values(share_H, weight, C)
            out_HE = out_HE * shrink_H[:, None] + chapter_HE * share_H[:, None]
    query_H = position * H + head_H
    if not PER_CHAPTER:
        out_HE = out_HE / total_H[:, None]
        tl.store(lse_ptr + query_H, top_H + tl.log2(total_H), mask=valid_H)
    store_rows(out_ptr, query_H, valid_H, out_HE, E, BLOCK_E)
