"""What the Triton kernels of routed attention share.

B batch, L length, H heads, J key/value heads, R = H / J, E head dim, U distinct chapters, T tokens
per chapter, G routing groups per sequence, W positions per group, N chapters read per group,
X = B * G groups of the batch, M rows of a tile: each a position (or a pair of a position and a
chapter) and one of the R query heads that share a key/value head.

Tensors are contiguous and seen as rows of E numbers: (B, L, H) rows of queries, (U, T, J) of keys
and values. Scores are in units of log 2, for exp2. Rows and tokens that are only padding load
zeros, so that they add nothing to a gradient.

What a mixing does with the weights (``moc.ops.mixing``) is in ``scores``, ``shares_of_values`` and
``gradients`` alone, where the constants A, B and C name the weighting of scores, as a factor and as
a bias, and of values ("": none), and PER_CHAPTER is a softmax for each chapter.
"""

from __future__ import annotations

import triton
import triton.language as tl

# tl.constexpr, since a kernel reads no other globals
LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)
# names of the weightings that the kernels know as a, b and c
KNOWN = {"A": ("", "weight"), "B": ("", "log"), "C": ("", "weight")}
# what varies from batch to batch: a kernel compiled anew for each kind of number gains nothing
VARYING = ("num_groups", "length", "num_tiles", "num_chapters", "num_rows")


@triton.jit
def group_rows(
    group, kv_head, tile, num_groups, length, group_tokens,
    J: tl.constexpr, R: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """A tile of one group's rows: the (B, L, H) row of each, and which are no padding."""
    row_M = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    within_M = row_M // R
    position_M = group % num_groups * group_tokens + within_M
    valid_M = (within_M < group_tokens) & (position_M < length)
    position_M = (group // num_groups).to(tl.int64) * length + position_M
    return position_M * (J * R) + kv_head * R + row_M % R, valid_M


@triton.jit
def chapter_rows(
    first_row, end_row, kv_head, order_ptr, num_groups, length, group_tokens, num_read,
    J: tl.constexpr, R: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """A tile of one chapter's slots: (B, L, H) rows, (B, L, N, H) rows, (X, N) entries, validity.

    An entry's ``group_tokens`` slots are there also where the last group has fewer positions.
    """
    row_M = first_row + tl.arange(0, BLOCK_M)
    slot_M, head_M = row_M // R, kv_head * R + row_M % R
    valid_M = row_M < end_row
    entry_M = tl.load(order_ptr + slot_M // group_tokens, mask=valid_M, other=0)
    group_M = entry_M // num_read
    position_M = group_M % num_groups * group_tokens + slot_M % group_tokens
    valid_M = valid_M & (position_M < length)
    position_M = (group_M // num_groups).to(tl.int64) * length + position_M
    pair_M = position_M * num_read + entry_M % num_read
    return position_M * (J * R) + head_M, pair_M * (J * R) + head_M, entry_M, valid_M


@triton.jit
def slots_of_run(run, chapter, offset_ptr, first_run_ptr, group_tokens, run_slots):
    """Where a run's slots begin and end."""
    rank = run - tl.load(first_run_ptr + chapter)
    begin = tl.load(offset_ptr + chapter) * group_tokens + rank * run_slots
    last = tl.load(offset_ptr + chapter + 1) * group_tokens
    return begin, tl.minimum(begin + run_slots, last)


@triton.jit
def statistics(
    lse_ptr, delta_ptr, query_M, valid_M, PER_CHAPTER: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Log-sum-exp and <dout, out> of each row; a softmax per chapter finds its own."""
    lse_M = tl.zeros((BLOCK_M,), tl.float32)
    delta_M = tl.zeros((BLOCK_M,), tl.float32)
    if not PER_CHAPTER:
        lse_M = tl.load(lse_ptr + query_M, mask=valid_M, other=0.0)
        delta_M = tl.load(delta_ptr + query_M, mask=valid_M, other=0.0)
    return lse_M, delta_M


@triton.jit
def scores(
    q_ME, k_TE, weight_M, scale,
    T: tl.constexpr, A: tl.constexpr, B: tl.constexpr, TINY: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """Scores before and after the weights."""
    raw_MT = tl.dot(q_ME, tl.trans(k_TE), input_precision="ieee") * (scale * LOG2_E)
    score_MT = raw_MT
    if A == "weight":
        score_MT = score_MT * weight_M[:, None]
    if B == "log":
        score_MT = score_MT + tl.log2(tl.maximum(weight_M, TINY))[:, None]
    return raw_MT, tl.where((tl.arange(0, BLOCK_T) < T)[None, :], score_MT, float("-inf"))


@triton.jit
def shares_of_values(share_MX, weight, C: tl.constexpr):
    """What values are multiplied by, from what falls on them."""
    if C == "weight":
        share_MX = share_MX * weight
    return share_MX


@triton.jit
def gradients(
    q_ME, k_TE, v_TE, dout_ME, weight_M, lse_M, delta_M, scale,
    T: tl.constexpr, PER_CHAPTER: tl.constexpr, A: tl.constexpr, B: tl.constexpr, C: tl.constexpr,
    TINY: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """One chapter's shares of the values, gradients of q.k * scale, and of the weights by row."""
    raw_MT, score_MT = scores(q_ME, k_TE, weight_M, scale, T, A, B, TINY, BLOCK_T)
    dshare_MT = tl.dot(dout_ME, tl.trans(v_TE), input_precision="ieee")
    if PER_CHAPTER:
        share_MT = tl.exp2(score_MT - tl.max(score_MT, 1)[:, None])
        share_MT = share_MT / tl.sum(share_MT, 1)[:, None]
        dweight_M = tl.sum(share_MT * dshare_MT, 1)
        share_MT = shares_of_values(share_MT, weight_M[:, None], C)
        dscore_MT = share_MT * (dshare_MT - dweight_M[:, None])
    else:
        share_MT = tl.exp2(score_MT - lse_M[:, None])
        dvalue_MT = share_MT * dshare_MT
        dscore_MT = share_MT * (
            shares_of_values(dshare_MT, weight_M[:, None], C) - delta_M[:, None]
        )
        dweight_M = tl.zeros_like(weight_M)
        if A == "weight" and C == "weight":
            dweight_M = tl.sum(dvalue_MT + dscore_MT * (raw_MT * LN_2), 1)
        elif A == "weight":
            dweight_M = tl.sum(dscore_MT * (raw_MT * LN_2), 1)
        elif C == "weight":
            dweight_M = tl.sum(dvalue_MT, 1)
        if B == "log":  # the clamp of the logarithm passes no gradient
            dweight_M += tl.where(weight_M >= TINY, tl.sum(dscore_MT, 1) / weight_M, 0.0)
        if A == "weight":
            dscore_MT = dscore_MT * weight_M[:, None]
        share_MT = shares_of_values(share_MT, weight_M[:, None], C)
    return share_MT, dscore_MT, dweight_M


@triton.jit
def load_rows(base_ptr, row_M, valid_M, E: tl.constexpr, BLOCK_E: tl.constexpr):
    e_E = tl.arange(0, BLOCK_E)
    mask_ME = valid_M[:, None] & (e_E < E)[None, :]
    return tl.load(base_ptr + row_M[:, None] * E + e_E[None, :], mask=mask_ME, other=0.0)


@triton.jit
def store_rows(base_ptr, row_M, valid_M, x_ME, E: tl.constexpr, BLOCK_E: tl.constexpr):
    e_E = tl.arange(0, BLOCK_E)
    mask_ME = valid_M[:, None] & (e_E < E)[None, :]
    pointer_ME = base_ptr + row_M[:, None] * E + e_E[None, :]
    tl.store(pointer_ME, x_ME.to(base_ptr.dtype.element_ty), mask=mask_ME)
