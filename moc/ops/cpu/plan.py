"""Who reads which chapter, in buckets for batched products.

X positions, H heads, J key/value heads, R = H / J, U chapters, T tokens per chapter, N chapters per
position, P = X * N pairs, A chapters of a bucket, I readers per chapter of a bucket, S rows: heads
of pairs, a bucket's in the order (A, J, I, R), and padding.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# Readers are padded to a bucket's largest number: at most a seventh of them is padding, and the
# number of products stays small. A bucket makes at most so many scores (4 MB in float32), so that
# what it works on stays in the caches or near them.
_GROWTH, _MAX_SCORES = 1.15, 2**20


class Bucket(NamedTuple):
    first: int  # chapter, in the order of ``Plan.chapter_U``
    num: int  # of chapters: A
    readers: int  # per chapter, padding included: I
    base: int  # its first row among all rows of all buckets
    num_rows: int

    def rows(self, num_products: int) -> tuple[slice, tuple[int, int]]:
        """Its rows, and their shape (Z, Y) for so many products."""
        here = slice(self.base, self.base + self.num_rows)
        return here, (num_products, self.num_rows // num_products)


class Plan(NamedTuple):
    """Rows by bucket. Those that only pad have the source 0, and nobody looks for them."""

    buckets: list[Bucket]
    chapter_U: Tensor  # by falling number of readers; chapters without any are left out
    source_S: Tensor  # for every row, which of the (X, H) query rows
    row_XHN: Tensor  # for every position, head and chapter read, its row

    def members(self, bucket: Bucket) -> Tensor:
        """The chapters of a bucket, (A,)."""
        return self.chapter_U[bucket.first : bucket.first + bucket.num]

    def by_row(self, x_XHN: Tensor, fill: float = 0.0) -> Tensor:
        """Values of pairs and heads, row by row (S,); ``fill`` where a row only pads."""
        x_S = x_XHN.new_full(self.source_S.shape, fill)
        x_S[self.row_XHN.flatten()] = x_XHN.flatten()
        return x_S


def plan_groups(
    row_XN: Tensor, *, num_chapters: int, num_tokens: int, num_heads: int, num_kv_heads: int
) -> Plan:
    """The plan for positions that read the chapters ``row_XN``. Waits for the device."""
    device, num_read = row_XN.device, row_XN.shape[1]
    per_kv_head = num_heads // num_kv_heads
    chapter_P = row_XN.flatten()
    count_U = torch.zeros(num_chapters, dtype=torch.long, device=device)
    count_U.scatter_add_(0, chapter_P, torch.ones_like(chapter_P))
    chapter_U = count_U.argsort(descending=True, stable=True)
    counts = [count for count in count_U[chapter_U].tolist() if count]
    chapter_U = chapter_U[: len(counts)]
    buckets: list[Bucket] = []
    first = base = 0
    while first < len(counts):
        readers = counts[first]
        most = max(1, _MAX_SCORES // (readers * num_heads * num_tokens))
        last = first + 1
        while last < len(counts) and last - first < most and counts[last] * _GROWTH >= readers:
            last += 1
        num_rows = (last - first) * readers * num_heads
        buckets.append(Bucket(first, last - first, readers, base, num_rows))
        base += num_rows
        first = last
    # the first row of a chapter, and its rows per key/value head
    first_row_U = torch.zeros(num_chapters, dtype=torch.long)
    rows_U = torch.zeros(num_chapters, dtype=torch.long)
    sorted_U = chapter_U.cpu()
    for bucket in buckets:
        members_A = sorted_U[bucket.first : bucket.first + bucket.num]
        first_row_U[members_A] = bucket.base + bucket.readers * num_heads * torch.arange(bucket.num)
        rows_U[members_A] = bucket.readers * per_kv_head
    order_P = chapter_P.argsort(stable=True)
    sorted_P = chapter_P[order_P]
    rank_P = torch.empty_like(chapter_P)
    rank_P[order_P] = (
        torch.arange(len(chapter_P), device=device) - (count_U.cumsum(0) - count_U)[sorted_P]
    )
    kv_head_J1 = torch.arange(num_kv_heads, device=device)[:, None]
    row_PJR = (
        (first_row_U.to(device)[chapter_P] + rank_P * per_kv_head)[:, None, None]
        + kv_head_J1 * rows_U.to(device)[chapter_P][:, None, None]
        + torch.arange(per_kv_head, device=device)
    )
    row_XNH = row_PJR.view(len(row_XN), num_read, num_heads)
    query_XH = torch.arange(len(row_XN) * num_heads, device=device).view(-1, 1, num_heads)
    source_S = torch.zeros(base, dtype=torch.long, device=device)
    source_S[row_XNH.flatten()] = query_XH.expand(row_XNH.shape).flatten()
    return Plan(buckets, chapter_U, source_S, row_XNH.transpose(1, 2).contiguous())
