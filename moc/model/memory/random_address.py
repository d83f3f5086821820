"""A fixed random address, for any kind of memory: a control of what a learned one is worth.

B batch, L length, D model dim, G routing groups, K rows picked, N rows read.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from moc.model.memory.seam import Address, Context, Kind

# Multipliers of a multiplicative hash (Knuth, TAOCP 6.4): odd, near the golden section of 2^32.
_OF_KEY, _OF_PLACE, _SHIFT, _MASK = 2_654_435_761, 2_246_822_519, 15, 2**32 - 1


def random_rows(key_BG: Tensor, kind: Kind) -> Tensor:
    """K distinct rows for every key, the same at any time and on any machine: (B, G, K).

    The rows that can be picked are cut into K equal parts, and each key has one of every part.
    """
    part = (kind.num_rows - kind.num_always) // kind.num_picked
    place_K = torch.arange(kind.num_picked, device=key_BG.device)
    mixed_BGK = ((key_BG[..., None] + 1) * _OF_KEY + (place_K + 1) * _OF_PLACE) & _MASK
    mixed_BGK = ((mixed_BGK ^ (mixed_BGK >> _SHIFT)) * _OF_PLACE) & _MASK
    mixed_BGK = mixed_BGK ^ (mixed_BGK >> _SHIFT)
    return kind.num_always + place_K * part + mixed_BGK % part


class RandomAddress(nn.Module):
    """For positions that address by themselves: rows from a hash of the token, equal weights."""

    def __init__(self, kind: Kind) -> None:
        super().__init__()
        assert kind.scope == "token", "groups of positions are numbered by their kind"
        self.kind = kind

    def forward(self, x_BLD: Tensor, context: Context) -> Address:
        index_BLK = random_rows(context.tokens_BL, self.kind)
        always_N = torch.arange(self.kind.num_always, device=x_BLD.device)
        always_BLN = always_N.expand(*index_BLK.shape[:2], -1)
        index_BLN = torch.cat((always_BLN, index_BLK), dim=-1)
        weight_BLN = torch.full_like(index_BLN, 1 / index_BLN.shape[-1], dtype=torch.float32)
        return Address(index_BLN, weight_BLN, 1)
