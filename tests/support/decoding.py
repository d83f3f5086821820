"""A text fed to a model with a cache, call by call."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from moc.model import Transformer
from tests.support.small_models import W

LENGTH = 4 * W + 3
PROMPTS = (5, 1, 2 * W)  # inside a segment, a single token, up to a border
# Tokens of each row, call by call; what a row has less than the longest is padded on the right.
ONE_BY_ONE = [PROMPTS, *[(1, 1, 1)] * (LENGTH - max(PROMPTS))]
# copies of chapters are kept while tokens come one by one, go with a longer call, and come again
MIXED = [
    PROMPTS, *[(1, 1, 1)] * 2, (0, 1, 1), (1, 1, 1), (2 * W + 1, 3, 2), *[(1, 1, 1)] * 3, (1, W, 0),
    (1, 1, 1),
]  # fmt: skip
IN_CHUNKS = [PROMPTS, (3, 6, 1), (1, 1, 1), (0, 2, W), (2 * W, 5, 3), (2, 0, 2)]


@torch.no_grad()
def decode(
    model: Transformer,
    tokens_BL: Tensor,
    calls: Sequence[tuple[int, ...]],
    *,
    filler: int = 10,
    **policy: object,
) -> Tensor:
    """Logits (B, fed, V) of tokens fed call by call, NaN where a row was fed fewer."""
    batch = len(tokens_BL)
    cache = model.new_cache(batch, sum(max(counts) for counts in calls), **policy)
    fed = [0] * batch
    totals = [sum(counts[b] for counts in calls) for b in range(batch)]
    logits_BLV = torch.full((batch, max(totals), model.config.vocab_size), float("nan"))
    logits_BLV = logits_BLV.to(model.embedding.weight.dtype)
    for counts in calls:
        width = max(counts)
        chunk_BL = torch.full((batch, width), filler)
        for b, count in enumerate(counts):
            chunk_BL[b, :count] = tokens_BL[b, fed[b] : fed[b] + count]
        real_BL = torch.arange(width)[None] < torch.tensor(counts)[:, None]
        out = model(chunk_BL, real_BL=None if real_BL.all() else real_BL, cache=cache)
        for b, count in enumerate(counts):
            logits_BLV[b, fed[b] : fed[b] + count] = out.logits_BLV[b, :count]
            fed[b] += count
    return logits_BLV


def difference(found_BLV: Tensor, expected_BLV: Tensor) -> float:
    """Largest difference of the logits of tokens that were fed, all of which must be there."""
    fed_BL = ~found_BLV.isnan().all(-1)
    assert fed_BL.sum() > 30
    assert found_BLV[fed_BL].isfinite().all()
    return (found_BLV - expected_BLV[:, : found_BLV.shape[1]])[fed_BL].abs().max().item()


def prompt_mask() -> Tensor:
    """Which positions are prompt."""
    return torch.arange(LENGTH) < torch.tensor(PROMPTS)[:, None]
