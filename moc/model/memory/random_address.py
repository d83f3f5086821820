"""Fixed random rows, for any kind of memory: a control of what a learned address is worth.

B batch, G routing groups, K rows picked.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Multipliers of a multiplicative hash (Knuth, TAOCP 6.4): odd, near the golden section of 2^32.
_OF_KEY, _OF_PLACE, _SHIFT, _MASK = 2_654_435_761, 2_246_822_519, 15, 2**32 - 1


def random_rows(key_BG: Tensor, *, num_rows: int, num_always: int, num_picked: int) -> Tensor:
    """K distinct rows for every key, the same at any time and on any machine: (B, G, K).

    The rows that can be picked are cut into K parts as equal as can be, and each key has one of
    every part.
    """
    place_K = torch.arange(num_picked, device=key_BG.device)
    first_K, end_K = (
        num_always + place * (num_rows - num_always) // num_picked
        for place in (place_K, place_K + 1)
    )
    mixed_BGK = ((key_BG[..., None] + 1) * _OF_KEY + (place_K + 1) * _OF_PLACE) & _MASK
    mixed_BGK = ((mixed_BGK ^ (mixed_BGK >> _SHIFT)) * _OF_PLACE) & _MASK
    mixed_BGK = mixed_BGK ^ (mixed_BGK >> _SHIFT)
    return first_K + mixed_BGK % (end_K - first_K)
