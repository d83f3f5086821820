"""Routed attention on a GPU in hand-written Triton kernels, forward and backward.

B batch, L length, H heads, J key/value heads, R = H / J, E head dim, U distinct chapters, T tokens
per chapter, G routing groups per sequence, W positions per group (the last group may be shorter),
N chapters read per group, X = B * G groups of the batch, P = X * N entries that read a chapter,
Z runs of one chapter's entries.

The same function as ``moc.ops.reference.attend``, with nothing copied and no scores in memory.
Query heads that share a key/value head are rows of one tile, so grouped heads fill matrix units.

- Long groups: a tile of a group's rows stays in registers and reads the group's chapters in turn,
  by index, with an online softmax. Nothing but the output is written; the tiles and heads of a
  group run side by side, so that the chapters come from the L2 cache. dq and dweight likewise.
- Short groups (a token each) would read a whole chapter for a handful of rows, so that their
  entries are sorted by chapter, as in a mixture of experts: a program keeps one chapter and runs
  through its readers in tiles of 64 rows. What a position got from each chapter is written down,
  N times the output, and combined: fewer bytes than the 2 * T rows of each chapter.
- dk and dv always go chapter by chapter, in registers, without atomics: equal runs give equal
  bits. A chapter that many read, such as a shared one, is cut into several runs, summed in order.

The number of programs depends on shapes alone: nothing waits for the device. Softmax and sums are
float32, products of float32 inputs are exact float32 ("ieee", no tensor cores).
"""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from moc.ops.mixing import MIXINGS, Mixing
from moc.ops.triton.schedule import (
    compile_sizes,
    fits_on_chip,
    goes_by_chapter,
    num_row_tiles,
    power_of_2,
    sort_by_chapter,
    weighting_names,
)

HAS_TRITON = importlib.util.find_spec("triton") is not None
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def supports(q_BLHE: Tensor, k_UTJE: Tensor, num_groups: int, mixing: Mixing) -> bool:
    """Several groups per sequence, weightings that the kernels know, and a GPU (or Triton's
    interpreter) whose programs hold a chapter of this dtype."""
    if num_groups == 1 or not HAS_TRITON or q_BLHE.dtype != k_UTJE.dtype:
        return False
    if mixing.per_chapter and not mixing.plain_scores:
        return False
    if q_BLHE.is_cuda:
        dtypes = (torch.float32, torch.bfloat16, torch.float16)
        if q_BLHE.dtype not in dtypes or not fits_on_chip(k_UTJE, _shared_bytes(q_BLHE.device)):
            return False
    else:
        # the interpreter multiplies bfloat16 numbers as the integers that hold them
        if not INTERPRETED or q_BLHE.dtype not in (torch.float32, torch.float16):
            return False
        if not fits_on_chip(k_UTJE):
            return False
    return all(_knows(constant, name) for constant, name in weighting_names(mixing).items())


def attend(
    q_BLHE: Tensor,
    k_UTJE: Tensor,
    v_UTJE: Tensor,
    row_BGN: Tensor,
    weight_BGN: Tensor,
    *,
    mixing: str,
    group_tokens: int,
    scale: float,
) -> Tensor:
    """``routed_attention``, where ``supports``."""
    group_tokens = min(group_tokens, q_BLHE.shape[1])
    out_BLHE, _ = _forward(
        q_BLHE.contiguous(),
        k_UTJE.contiguous(),
        v_UTJE.contiguous(),
        row_BGN.contiguous(),
        weight_BGN.contiguous(),
        mixing,
        group_tokens,
        scale,
        goes_by_chapter(q_BLHE, k_UTJE, group_tokens),
    )
    return out_BLHE


def _shared_bytes(device: torch.device) -> int:
    """Shared memory that a program may have; 0 on what the kernels are not made for."""
    properties = torch.cuda.get_device_properties(device)
    if properties.major < 8:
        return 0
    return getattr(properties, "shared_memory_per_block_optin", 0)  # AMD's have none


# What torch.compiler.assume_constant_result does, which would import the compiler: 100 MB, seconds.
_shared_bytes._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _knows(constant: str, name: str) -> bool:
    from moc.ops.triton.parts import KNOWN  # imports Triton, which only a GPU needs

    return name in KNOWN[constant]


_knows._dynamo_marked_constant = True  # type: ignore[attr-defined]


@torch.library.custom_op("moc::routed_attention", mutates_args=())
def _forward(
    q_BLHE: Tensor,
    k_UTJE: Tensor,
    v_UTJE: Tensor,
    row_BGN: Tensor,
    weight_BGN: Tensor,
    mixing: str,
    group_tokens: int,
    scale: float,
    by_chapter: bool,
) -> tuple[Tensor, Tensor]:
    """Outputs (B, L, H, E) and log2-sum-exps (B, L, H), none for a softmax per chapter."""
    from moc.ops.triton import forward as kernels

    batch, length, num_heads, head_dim = q_BLHE.shape
    num_chapters, num_kv_heads = k_UTJE.shape[0], k_UTJE.shape[2]
    num_groups, num_read = row_BGN.shape[1:]
    out_BLHE, lse_BLH = _forward_shapes(q_BLHE, k_UTJE, v_UTJE, row_BGN, weight_BGN, mixing)
    formula = MIXINGS[mixing]
    sizes = compile_sizes(q_BLHE, k_UTJE, weight_BGN, formula, by_chapter, group_tokens)
    groups = (num_groups, length, group_tokens, num_read)
    with torch.cuda.device_of(q_BLHE):
        if not by_chapter:
            num_tiles = num_row_tiles(sizes, group_tokens)
            kernels.group_forward[(batch * num_groups * num_kv_heads * num_tiles,)](
                q_BLHE, k_UTJE, v_UTJE, row_BGN, weight_BGN, out_BLHE, lse_BLH,
                *groups, num_tiles, scale, **sizes,
            )  # fmt: skip
            return out_BLHE, lse_BLH
        order = sort_by_chapter(row_BGN, num_chapters, num_kv_heads, group_tokens, sizes)
        pair_out_BLNHE = q_BLHE.new_empty(batch, length, num_read, num_heads, head_dim)
        pair_lse_BLNH = lse_BLH.new_empty(0 if formula.per_chapter else pair_out_BLNHE.shape[:-1])
        kernels.chapter_forward[(len(order.chapter_Z) * num_kv_heads,)](
            q_BLHE, k_UTJE, v_UTJE, weight_BGN,
            order.entry_P, order.offset_U, order.first_run_U, order.chapter_Z,
            pair_out_BLNHE, pair_lse_BLNH,
            *groups, num_chapters, order.run_slots, scale, **sizes,
        )  # fmt: skip
        kernels.combine[(batch * length,)](
            pair_out_BLNHE, pair_lse_BLNH, weight_BGN, out_BLHE, lse_BLH, *groups,
            H=num_heads, E=head_dim, PER_CHAPTER=formula.per_chapter, C=sizes["C"],
            BLOCK_H=power_of_2(num_heads), BLOCK_E=sizes["BLOCK_E"],
        )  # fmt: skip
    return out_BLHE, lse_BLH


@_forward.register_fake
def _forward_shapes(
    q_BLHE: Tensor,
    k_UTJE: Tensor,
    v_UTJE: Tensor,
    row_BGN: Tensor,
    weight_BGN: Tensor,
    mixing: str,
    *_: object,
) -> tuple[Tensor, Tensor]:
    lse_shape = (0,) if MIXINGS[mixing].per_chapter else q_BLHE.shape[:3]
    return q_BLHE.new_empty(q_BLHE.shape), q_BLHE.new_empty(lse_shape, dtype=torch.float32)


@torch.library.custom_op("moc::routed_attention_backward", mutates_args=())
def _backward(
    dout_BLHE: Tensor,
    out_BLHE: Tensor,
    lse_BLH: Tensor,
    q_BLHE: Tensor,
    k_UTJE: Tensor,
    v_UTJE: Tensor,
    row_BGN: Tensor,
    weight_BGN: Tensor,
    mixing: str,
    group_tokens: int,
    scale: float,
    by_chapter: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of queries, keys, values and weights (empty where nothing depends on them)."""
    from moc.ops.triton import backward as kernels

    batch, length, num_heads, head_dim = q_BLHE.shape
    num_chapters, num_kv_heads = k_UTJE.shape[0], k_UTJE.shape[2]
    num_groups, num_read = row_BGN.shape[1:]
    groups = (num_groups, length, group_tokens, num_read)
    formula = MIXINGS[mixing]
    weighted = bool(formula.weightings)
    chapter_sizes = compile_sizes(q_BLHE, k_UTJE, weight_BGN, formula, True, group_tokens)
    order = sort_by_chapter(row_BGN, num_chapters, num_kv_heads, group_tokens, chapter_sizes)
    dk_UTJE, dv_UTJE = k_UTJE.new_empty(k_UTJE.shape), v_UTJE.new_empty(v_UTJE.shape)
    part_shape = (max(1, order.num_parts), *k_UTJE.shape[1:])
    dk_part_YTJE = k_UTJE.new_empty(part_shape, dtype=torch.float32)
    dv_part_YTJE = torch.empty_like(dk_part_YTJE)
    pair_shape = (batch, length, num_read, num_heads)
    pair_dq_BLNHE = q_BLHE.new_empty((*pair_shape, head_dim) if by_chapter else 0)
    pair_dweight_BLNH = lse_BLH.new_empty(pair_shape if by_chapter else 0)
    delta_BLH = torch.empty_like(lse_BLH)
    with torch.cuda.device_of(q_BLHE):
        if not formula.per_chapter:
            num_rows = delta_BLH.numel()
            kernels.row_dots[(-(-num_rows // 32),)](
                out_BLHE, dout_BLHE, delta_BLH, num_rows,
                E=head_dim, BLOCK_M=32, BLOCK_E=chapter_sizes["BLOCK_E"],
            )  # fmt: skip
        kernels.chapter_backward[(len(order.chapter_Z) * num_kv_heads,)](
            q_BLHE, k_UTJE, v_UTJE, weight_BGN,
            order.entry_P, order.offset_U, order.first_run_U, order.first_part_U, order.chapter_Z,
            lse_BLH, delta_BLH, dout_BLHE,
            dk_UTJE, dv_UTJE, dk_part_YTJE, dv_part_YTJE, pair_dq_BLNHE, pair_dweight_BLNH,
            *groups, num_chapters, order.run_slots, scale,
            WITH_PAIRS=by_chapter, WEIGHTED=weighted, **chapter_sizes,
        )  # fmt: skip
        if order.num_parts:
            chapter_size = k_UTJE[0].numel()
            kernels.sum_parts[(num_chapters, -(-chapter_size // 4096))](
                dk_part_YTJE, dv_part_YTJE, order.first_part_U, dk_UTJE, dv_UTJE,
                SIZE=chapter_size, BLOCK=4096,
            )  # fmt: skip
        if by_chapter:
            dq_BLHE = pair_dq_BLNHE.sum(2)
            dweight_BLN = pair_dweight_BLNH.sum(-1)
            missing = num_groups * group_tokens - length
            dweight_BWN = F.pad(dweight_BLN, (0, 0, 0, missing))
            dweight_BGN = dweight_BWN.unflatten(1, (num_groups, -1)).sum(2)
        else:
            dq_BLHE = q_BLHE.new_empty(q_BLHE.shape)
            sizes = compile_sizes(q_BLHE, k_UTJE, weight_BGN, formula, False, group_tokens)
            num_tiles = num_row_tiles(sizes, group_tokens)
            num_programs = batch * num_groups * num_kv_heads * num_tiles
            dweight_YN = lse_BLH.new_empty(num_programs, num_read)
            kernels.group_backward[(num_programs,)](
                q_BLHE, k_UTJE, v_UTJE, row_BGN, weight_BGN, lse_BLH, delta_BLH, dout_BLHE,
                dq_BLHE, dweight_YN, *groups, num_tiles, scale, WEIGHTED=weighted, **sizes,
            )  # fmt: skip
            dweight_BGN = dweight_YN.view(batch, num_groups, -1, num_read).sum(2)
    if not weighted:
        return dq_BLHE, dk_UTJE, dv_UTJE, weight_BGN.new_empty(0)
    return dq_BLHE, dk_UTJE, dv_UTJE, dweight_BGN.to(weight_BGN.dtype)


@_backward.register_fake
def _backward_shapes(
    dout_BLHE: Tensor,
    out_BLHE: Tensor,
    lse_BLH: Tensor,
    q_BLHE: Tensor,
    k_UTJE: Tensor,
    v_UTJE: Tensor,
    row_BGN: Tensor,
    weight_BGN: Tensor,
    mixing: str,
    *_: object,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    like = (q_BLHE, k_UTJE, v_UTJE)
    dq_BLHE, dk_UTJE, dv_UTJE = (tensor.new_empty(tensor.shape) for tensor in like)
    dweight_shape = weight_BGN.shape if MIXINGS[mixing].weightings else (0,)
    return dq_BLHE, dk_UTJE, dv_UTJE, weight_BGN.new_empty(dweight_shape)


def _save(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    *tensors, mixing, group_tokens, scale, by_chapter = inputs
    ctx.save_for_backward(*output, *tensors)
    ctx.options = mixing, group_tokens, scale, by_chapter
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, dout_BLHE: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    dq, dk, dv, dweight = _backward(dout_BLHE.contiguous(), *ctx.saved_tensors, *ctx.options)
    weighted = MIXINGS[ctx.options[0]].weightings
    return dq, dk, dv, None, dweight if weighted else None, None, None, None, None


_forward.register_autograd(_differentiate, setup_context=_save)
