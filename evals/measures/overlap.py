"""How far two counts of picked rows agree. R rows.

Apart from ``evals.measures.row_use`` so that a report needs no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

USED_SHARE = 0.1  # of the uniform load: a row with less counts as unused


def overlap(
    before_R: Sequence[int] | Tensor, after_R: Sequence[int] | Tensor, *, num_always: int = 0
) -> dict[str, float]:
    """How far two counts of picks fall on the same rows; the first ``num_always`` are left out.

    ``mass``: sum over rows of the smaller of the two shares of picks: 1 is the same use, 0 is
    none in common. ``jaccard``: of the two sets of used rows, those with at least
    ``USED_SHARE`` of the load that each would have if all were picked alike.

    Raises:
        ValueError: if the counts are of different lengths, or one of them is all zero.
    """
    if len(before_R) != len(after_R):
        raise ValueError(f"{len(before_R)} rows before and {len(after_R)} after do not compare")
    counts_2R = np.stack([np.asarray(c, dtype=float)[num_always:] for c in (before_R, after_R)])
    totals_21 = counts_2R.sum(1, keepdims=True)
    if not totals_21.all():
        raise ValueError("no row was picked, so there is no use to compare")
    shares_2R = counts_2R / totals_21
    used_2R = shares_2R * shares_2R.shape[1] >= USED_SHARE
    jaccard = used_2R.all(0).sum() / used_2R.any(0).sum()
    return {"jaccard": float(jaccard), "mass": float(shares_2R.min(0).sum())}
