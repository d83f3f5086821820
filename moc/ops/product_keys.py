"""The best of n * n keys, each the pair of two half-keys, without a score for every pair.

arXiv 1907.05242. X positions, H heads, n half-keys on each side, k keys picked,
P pairs that can be among the best k.
"""

from __future__ import annotations

import torch
from torch import Tensor


def product_topk(score1_XHn: Tensor, score2_XHn: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest sums of one score from each side: (..., k) sums, falling, and i * n + j.

    Gradients go to the two scores of each sum. In low precision many sums are equal, and which of
    them are picked is left open.

    Raises:
        ValueError: there are fewer than k sums.
    """
    num_half = score1_XHn.shape[-1]
    if k > num_half * num_half:
        raise ValueError(
            f"{k} keys to pick among {num_half * num_half}: pick fewer, or add half-keys"
        )
    with torch.no_grad():
        kept = min(k, num_half)
        best1_XHk, index1_XHk = score1_XHn.topk(kept)
        best2_XHk, index2_XHk = score2_XHn.topk(kept)
        # The a-th best with the b-th has a * b - 1 sums at least as large, so about k log k pairs
        # are left of k * k. At X 2048, H 4, n 256, one thread: 71 ms against 80 for k 16 and 105
        # against 160 for k 32, backward included; the halves' top-k is 28 to 35 of each side.
        pairs = [(a, b) for a in range(kept) for b in range(kept) if (a + 1) * (b + 1) <= k]
        rank1_P, rank2_P = torch.tensor(pairs, device=score1_XHn.device).unbind(1)
        picked_XHk = (best1_XHk[..., rank1_P] + best2_XHk[..., rank2_P]).topk(k).indices
        index1_XHk = index1_XHk.gather(-1, rank1_P[picked_XHk])
        index2_XHk = index2_XHk.gather(-1, rank2_P[picked_XHk])
    score_XHk = score1_XHn.gather(-1, index1_XHk) + score2_XHn.gather(-1, index2_XHk)
    return score_XHk, index1_XHk * num_half + index2_XHk
