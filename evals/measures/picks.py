"""How far two counts of picked chapters agree. C chapters.

Apart from ``evals.measures.chapter_use`` so that a report needs no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

USED_SHARE = 0.1  # of the uniform load: a chapter with less counts as unused


def overlap(
    before_C: Sequence[int] | Tensor, after_C: Sequence[int] | Tensor, *, num_shared: int = 0
) -> dict[str, float]:
    """How far two counts of picks fall on the same chapters; the first ``num_shared`` are left out.

    ``mass``: sum over chapters of the smaller of the two shares of picks: 1 is the same use, 0 is
    none in common. ``jaccard``: of the two sets of used chapters, those with at least
    ``USED_SHARE`` of the load that each would have if all were picked alike.

    Raises:
        ValueError: if the counts are of different lengths, or one of them is all zero.
    """
    if len(before_C) != len(after_C):
        raise ValueError(f"{len(before_C)} chapters before and {len(after_C)} after do not compare")
    counts_2C = np.stack([np.asarray(c, dtype=float)[num_shared:] for c in (before_C, after_C)])
    totals_21 = counts_2C.sum(1, keepdims=True)
    if not totals_21.all():
        raise ValueError("no chapter was picked, so there is no use to compare")
    shares_2C = counts_2C / totals_21
    used_2C = shares_2C * shares_2C.shape[1] >= USED_SHARE
    jaccard = used_2C.all(0).sum() / used_2C.any(0).sum()
    return {"jaccard": float(jaccard), "mass": float(shares_2C.min(0).sum())}
