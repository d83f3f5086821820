"""How the Triton kernels of routed attention share out their work: order, tiles, programs.

B batch, L length, H heads, J key/value heads, R = H / J, E head dim, U distinct chapters, T tokens
per chapter, G routing groups per sequence, W positions per group, N chapters read per group,
P = B * G * N entries that read a chapter, Z runs of one chapter's entries.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from moc.ops.mixing import Mixing

# T * E of a program's keys, padded: 128 x 128 or 64 x 256 numbers of 16 bits, half that of 32
MAX_CHAPTER_BYTES = 32768
HOPPER_SHARED_BYTES = 227 * 1024
MIN_GROUP_ROWS = 16  # of a matrix instruction
RUN_TILES = (4, 64)  # of a chapter in one program, at least and at most
NUM_PROGRAMS = 1024  # a few waves on 132 multiprocessors


def fits_on_chip(k_UTJE: Tensor, shared_bytes: int = HOPPER_SHARED_BYTES) -> bool:
    """Whether a chapter's keys, values and gradients of one head fit one program."""
    num_tokens, head_dim = k_UTJE.shape[1], k_UTJE.shape[3]
    chapter_bytes = _padded(num_tokens) * _padded(head_dim) * k_UTJE.element_size()
    needed_bytes = min(8 * chapter_bytes, 192 * 1024)  # the most that compiled kernels report
    return chapter_bytes <= MAX_CHAPTER_BYTES and needed_bytes <= shared_bytes


def goes_by_chapter(q_BLHE: Tensor, k_UTJE: Tensor, group_tokens: int) -> bool:
    """Whether a group has so few rows that sorting them by chapter moves fewer bytes.

    Going by chapter moves about 3 * E numbers per row and chapter through memory, going by group
    2 * T * E per group and chapter, most of them from the L2 cache, which is some 3 times faster.
    """
    num_tokens, num_kv_heads = k_UTJE.shape[1:3]
    group_rows = group_tokens * (q_BLHE.shape[2] // num_kv_heads)
    return group_rows < max(MIN_GROUP_ROWS, num_tokens // 4)


class ChapterOrder(NamedTuple):
    """The entries sorted by chapter, in runs; W slots for each entry. All int32."""

    entry_P: Tensor  # which entry (group and chapter read) comes at each place
    offset_U: Tensor  # (U + 1,) where each chapter's entries begin
    first_run_U: Tensor  # (U + 1,) each chapter's first run: one at least
    first_part_U: Tensor  # (U + 1,) ... counting only chapters of several runs
    chapter_Z: Tensor  # the chapter of each run; U where there is no such run
    run_slots: int
    num_parts: int  # room for the runs of chapters that have several


def sort_by_chapter(
    row_BGN: Tensor, num_chapters: int, num_kv_heads: int, group_tokens: int, sizes: dict
) -> ChapterOrder:
    num_slots = row_BGN.numel() * group_tokens
    assert num_slots * sizes["R"] < 2**31
    fewest, most = RUN_TILES
    tiles = num_slots * num_kv_heads // NUM_PROGRAMS // sizes["BLOCK_M"]
    run_slots = min(max(tiles, fewest), most) * sizes["BLOCK_M"]
    sorted_P, entry_P = row_BGN.flatten().int().sort(stable=True)
    device = row_BGN.device
    chapter_U = torch.arange(num_chapters + 1, dtype=torch.int32, device=device)
    offset_U = torch.searchsorted(sorted_P, chapter_U, out_int32=True)
    runs_U = ((offset_U.diff() * group_tokens + run_slots - 1) // run_slots).clamp(min=1)
    last_run_U = runs_U.cumsum(0, dtype=torch.int32)
    last_part_U = torch.where(runs_U > 1, runs_U, 0).cumsum(0, dtype=torch.int32)
    run_Z = torch.arange(num_chapters + num_slots // run_slots, dtype=torch.int32, device=device)
    return ChapterOrder(
        entry_P.int(),
        offset_U,
        F.pad(last_run_U, (1, 0)),
        F.pad(last_part_U, (1, 0)),
        torch.searchsorted(last_run_U, run_Z, right=True, out_int32=True),
        run_slots,
        2 * (num_slots // run_slots),
    )


def compile_sizes(
    q_BLHE: Tensor,
    k_UTJE: Tensor,
    weight_BGN: Tensor,
    mixing: Mixing,
    by_chapter: bool,
    group_tokens: int,
) -> dict:
    """What kernels are compiled for: tiles, warps and stages.

    A warpgroup's matrix instruction has 64 rows; more rows per chapter loaded ask less of the L2
    cache. Rows and warps are the most for which the backward kernels, compiled for sm_90, keep
    everything in registers or nearly so; products of float32 use no matrix unit and need more.
    """
    num_tokens, num_kv_heads, head_dim = k_UTJE.shape[1:]
    rows_per_head = q_BLHE.shape[2] // num_kv_heads
    block_t, block_e = _padded(num_tokens), _padded(head_dim)
    area = block_t * block_e
    if q_BLHE.dtype == torch.float32:
        block_m = 16 if by_chapter and area > 64 * 64 else 32
        num_warps = 8
    elif by_chapter:
        block_m = 64 if area <= 64 * 128 else 32
        num_warps = 4 if area <= 64 * 64 else 8
    else:
        block_m = min(128 if area <= 64 * 128 else 64, _padded(group_tokens * rows_per_head))
        num_warps = 8 if block_m == 128 or area > 64 * 64 else 4
    return {
        "T": num_tokens,
        "J": num_kv_heads,
        "R": rows_per_head,
        "E": head_dim,
        "PER_CHAPTER": mixing.per_chapter,
        **weighting_names(mixing),
        "TINY": max(torch.finfo(dtype).tiny for dtype in (weight_BGN.dtype, torch.float32)),
        "BLOCK_M": block_m,
        "BLOCK_T": block_t,
        "BLOCK_E": block_e,
        "num_warps": num_warps,
        "num_stages": 3 if area * k_UTJE.element_size() <= 64 * 64 * 2 and not by_chapter else 2,
    }


def weighting_names(mixing: Mixing) -> dict[str, str]:
    """What the kernels' A, B and C stand for: the weightings a, b and c by name, "" for none."""
    of = {"A": mixing.score_factor, "B": mixing.score_bias, "C": mixing.value_factor}
    return {constant: weighting.name if weighting else "" for constant, weighting in of.items()}


def num_row_tiles(sizes: dict, group_tokens: int) -> int:
    """Tiles that hold one group's rows of one key/value head."""
    return -(-group_tokens * sizes["R"] // sizes["BLOCK_M"])


def power_of_2(size: int) -> int:
    """The next one."""
    return 1 << (size - 1).bit_length()


def _padded(size: int) -> int:
    """A side of a tile: matrix instructions take 16 at least."""
    return max(16, power_of_2(size))
