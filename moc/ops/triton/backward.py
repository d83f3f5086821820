"""Triton kernels of routed attention: gradients.

Letters as in ``moc.ops.triton.parts``.
"""

from __future__ import annotations

import triton
import triton.language as tl

from moc.ops.triton.parts import (
    VARYING,
    chapter_rows,
    gradients,
    group_rows,
    load_rows,
    slots_of_run,
    statistics,
    store_rows,
)


@triton.jit(do_not_specialize=VARYING)
def group_backward(
    q_ptr, k_ptr, v_ptr, row_ptr, weight_ptr, lse_ptr, delta_ptr, dout_ptr, dq_ptr, dweight_ptr,
    num_groups, length, group_tokens, num_read, num_tiles, scale,
    T: tl.constexpr, J: tl.constexpr, R: tl.constexpr, E: tl.constexpr,
    PER_CHAPTER: tl.constexpr, A: tl.constexpr, B: tl.constexpr, C: tl.constexpr,
    WEIGHTED: tl.constexpr, TINY: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """Programs as in ``group_forward``; dq (B, L, H, E), and dweight (X, J, tiles, N) to be summed
    over heads and tiles."""
    program = tl.program_id(0)
    group, kv_head = program // num_tiles // J, program // num_tiles % J
    query_M, valid_M = group_rows(
        group, kv_head, program % num_tiles, num_groups, length, group_tokens, J, R, BLOCK_M
    )
    q_ME = load_rows(q_ptr, query_M, valid_M, E, BLOCK_E)
    dout_ME = load_rows(dout_ptr, query_M, valid_M, E, BLOCK_E)
    lse_M, delta_M = statistics(lse_ptr, delta_ptr, query_M, valid_M, PER_CHAPTER, BLOCK_M)
    token_T = tl.arange(0, BLOCK_T)
    dq_ME = tl.zeros((BLOCK_M, BLOCK_E), tl.float32)
    for n in range(num_read):
        chapter = tl.load(row_ptr + group * num_read + n)
        weight = tl.load(weight_ptr + group * num_read + n).to(tl.float32)
        weight_M = tl.zeros((BLOCK_M,), tl.float32) + weight
        memory_T = (chapter.to(tl.int64) * T + token_T) * J + kv_head
        k_TE = load_rows(k_ptr, memory_T, token_T < T, E, BLOCK_E)
        v_TE = load_rows(v_ptr, memory_T, token_T < T, E, BLOCK_E)
        _, dscore_MT, dweight_M = gradients(
            q_ME, k_TE, v_TE, dout_ME, weight_M, lse_M, delta_M, scale,
            T, PER_CHAPTER, A, B, C, TINY, BLOCK_T,
        )  # fmt: skip
        dq_ME += tl.dot(dscore_MT.to(k_TE.dtype), k_TE, input_precision="ieee")
        if WEIGHTED:
            dweight = tl.sum(tl.where(valid_M, dweight_M, 0.0), 0)
            tl.store(dweight_ptr + program.to(tl.int64) * num_read + n, dweight)
    store_rows(dq_ptr, query_M, valid_M, dq_ME * scale, E, BLOCK_E)


@triton.jit(do_not_specialize=VARYING)
def chapter_backward(
    q_ptr, k_ptr, v_ptr, weight_ptr, order_ptr, offset_ptr, first_run_ptr, first_part_ptr,
    chapter_ptr, lse_ptr, delta_ptr, dout_ptr, dk_ptr, dv_ptr, dk_part_ptr, dv_part_ptr,
    pair_dq_ptr, pair_dweight_ptr, num_groups, length, group_tokens, num_read, num_chapters,
    run_slots, scale,
    T: tl.constexpr, J: tl.constexpr, R: tl.constexpr, E: tl.constexpr,
    PER_CHAPTER: tl.constexpr, A: tl.constexpr, B: tl.constexpr, C: tl.constexpr,
    WEIGHTED: tl.constexpr, TINY: tl.constexpr, WITH_PAIRS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """Programs as in ``chapter_forward``; what a chapter's keys and values get from its readers.

    A chapter of one run (also one that nobody reads, which gets zeros) is written to dk and dv
    (U, T, J, E), the runs of others in float32 to parts of the same shape, for ``sum_parts``.
    ``WITH_PAIRS`` writes dq (B, L, N, H, E) and dweight (B, L, N, H) of each pair too.
    """
    run, kv_head = tl.program_id(0) // J, tl.program_id(0) % J
    chapter = tl.load(chapter_ptr + run)
    if chapter >= num_chapters:
        return
    begin, end = slots_of_run(run, chapter, offset_ptr, first_run_ptr, group_tokens, run_slots)
    token_T = tl.arange(0, BLOCK_T)
    memory_T = (chapter.to(tl.int64) * T + token_T) * J + kv_head
    k_TE = load_rows(k_ptr, memory_T, token_T < T, E, BLOCK_E)
    v_TE = load_rows(v_ptr, memory_T, token_T < T, E, BLOCK_E)
    dk_TE = tl.zeros((BLOCK_T, BLOCK_E), tl.float32)
    dv_TE = tl.zeros((BLOCK_T, BLOCK_E), tl.float32)
    for first_row in range(begin * R, end * R, BLOCK_M):
        query_M, pair_M, entry_M, valid_M = chapter_rows(
            first_row, end * R, kv_head, order_ptr,
            num_groups, length, group_tokens, num_read, J, R, BLOCK_M,
        )  # fmt: skip
        q_ME = load_rows(q_ptr, query_M, valid_M, E, BLOCK_E)
        dout_ME = load_rows(dout_ptr, query_M, valid_M, E, BLOCK_E)
        weight_M = tl.load(weight_ptr + entry_M, mask=valid_M, other=0.0).to(tl.float32)
        lse_M, delta_M = statistics(lse_ptr, delta_ptr, query_M, valid_M, PER_CHAPTER, BLOCK_M)
        share_MT, dscore_MT, dweight_M = gradients(
            q_ME, k_TE, v_TE, dout_ME, weight_M, lse_M, delta_M, scale,
            T, PER_CHAPTER, A, B, C, TINY, BLOCK_T,
        )  # fmt: skip
        dscore_MT = dscore_MT.to(k_TE.dtype)
        dv_TE += tl.dot(tl.trans(share_MT.to(k_TE.dtype)), dout_ME, input_precision="ieee")
        dk_TE += tl.dot(tl.trans(dscore_MT), q_ME, input_precision="ieee")
        if WITH_PAIRS:
            dq_ME = tl.dot(dscore_MT, k_TE, input_precision="ieee") * scale
            store_rows(pair_dq_ptr, pair_M, valid_M, dq_ME, E, BLOCK_E)
            if WEIGHTED:
                tl.store(pair_dweight_ptr + pair_M, dweight_M, mask=valid_M)
    dk_TE *= scale
    first_run = tl.load(first_run_ptr + chapter)
    if tl.load(first_run_ptr + chapter + 1) - first_run == 1:
        store_rows(dk_ptr, memory_T, token_T < T, dk_TE, E, BLOCK_E)
        store_rows(dv_ptr, memory_T, token_T < T, dv_TE, E, BLOCK_E)
    else:
        part = tl.load(first_part_ptr + chapter) + run - first_run
        part_T = (part.to(tl.int64) * T + token_T) * J + kv_head
        store_rows(dk_part_ptr, part_T, token_T < T, dk_TE, E, BLOCK_E)
        store_rows(dv_part_ptr, part_T, token_T < T, dv_TE, E, BLOCK_E)


@triton.jit
def sum_parts(
    dk_part_ptr, dv_part_ptr, first_part_ptr, dk_ptr, dv_ptr,
    SIZE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """dk and dv of chapters of several runs, in the order of the runs: one program of U * blocks.

    ``SIZE`` is that of a chapter, T * J * E.
    """
    chapter = tl.program_id(0).to(tl.int64)
    begin = tl.load(first_part_ptr + chapter)
    end = tl.load(first_part_ptr + chapter + 1)
    if begin == end:
        return
    place = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    dk = tl.zeros((BLOCK,), tl.float32)
    dv = tl.zeros((BLOCK,), tl.float32)
    start = begin.to(tl.int64) * SIZE
    for _ in range(begin, end):
        dk += tl.load(dk_part_ptr + start + place, mask=place < SIZE, other=0.0)
        dv += tl.load(dv_part_ptr + start + place, mask=place < SIZE, other=0.0)
        start += SIZE
    start = chapter * SIZE
    tl.store(dk_ptr + start + place, dk.to(dk_ptr.dtype.element_ty), mask=place < SIZE)
    tl.store(dv_ptr + start + place, dv.to(dv_ptr.dtype.element_ty), mask=place < SIZE)


@triton.jit(do_not_specialize=VARYING)
def row_dots(
    a_ptr, b_ptr, out_ptr, num_rows, E: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """Float32 inner products of the rows of two tensors."""
    row_M = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    a_ME = load_rows(a_ptr, row_M, row_M < num_rows, E, BLOCK_E).to(tl.float32)
    b_ME = load_rows(b_ptr, row_M, row_M < num_rows, E, BLOCK_E).to(tl.float32)
    tl.store(out_ptr + row_M, tl.sum(a_ME * b_ME, 1), mask=row_M < num_rows)
