"""Is it forgotten, or only out of reach? What training a little more says.

Ebbinghaus (1885): what is learnt again in less time than at first was not wholly lost. And a score
that a few examples about *other* people bring back was lost alignment, not lost knowledge (Zheng
et al., "Spurious Forgetting in Continual Learning of Language Models", arXiv 2501.13453).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence


def tokens_to_reach(points: Sequence[tuple[float, float]], target: float) -> float | None:
    """Training tokens at which a score first reaches ``target``; None when it never does.

    Args:
        points: (tokens, score) in the order of training; scores of NaN are skipped. Between two
            points the score is taken for a straight line.

    Raises:
        ValueError: when tokens do not increase.
    """
    if any(after[0] <= before[0] for before, after in itertools.pairwise(points)):
        raise ValueError(f"tokens must increase from point to point: {[p[0] for p in points]}")
    measured = [(tokens, score) for tokens, score in points if not math.isnan(score)]
    if measured and measured[0][1] >= target:
        return float(measured[0][0])
    for (start, below), (end, score) in itertools.pairwise(measured):
        if score >= target:
            return start + (end - start) * (target - below) / (score - below)
    return None


def savings(relearn_tokens: float | None, original_tokens: float | None) -> float:
    """Share of the tokens that learning again saves: 1 - relearning / learning (Ebbinghaus, 1885).

    1: nothing had been lost; 0: as if never learnt; negative: harder than at first.

    Returns:
        NaN where either never got there (None), or where learning took no tokens at all.
    """
    if relearn_tokens is None or original_tokens is None or original_tokens == 0:
        return math.nan
    if relearn_tokens < 0 or original_tokens < 0:
        raise ValueError(f"tokens cannot be negative: {relearn_tokens} and {original_tokens}")
    return 1 - relearn_tokens / original_tokens


def recovery(before: float, after: float, recovered: float) -> float:
    """Share of the lost score that comes back: (recovered - after) / (before - after).

    Args:
        before, after: the score before and after the phase that forgot.
        recovered: the score after the examples. Beyond ``before`` the share is more than 1.

    Returns:
        NaN where nothing was lost: there is nothing to bring back.
    """
    if not before > after:
        return math.nan
    return (recovered - after) / (before - after)
