"""The order of samples: pure functions of (seed, position), each computed in constant time.

Nothing here knows about ranks, workers or steps, so the order cannot depend on them, and any
position can be resumed without replaying the ones before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import isqrt

from moc.data.hashing import stable_hash

BLOCK = 1000  # samples in which the mixture's weights are met exactly; they are rounded to 1/BLOCK
_NUM_ROUNDS = 6
_MASK = 2**64 - 1


def permute(index: int, count: int, seed: int) -> int:
    """Where a pseudo-random permutation of range(count), chosen by ``seed``, sends ``index``.

    A Feistel network over pairs (left, right) of a grid that just covers range(count); results
    outside are walked on until they fall inside (Black and Rogaway, "Ciphers with Arbitrary
    Finite Domains", 2002), which keeps it a bijection without ever holding it in memory.
    """
    assert 0 <= index < count
    num_left = isqrt(count - 1) + 1
    num_right = -(-count // num_left)
    keys = _round_keys(seed)
    while True:
        left, right = divmod(index, num_right)
        for key in keys:
            left, right = right, (left + _mix(right ^ key)) % num_left
            num_left, num_right = num_right, num_left
        index = left * num_right + right
        if index < count:
            return index


def sample_source(position: int, weights: Sequence[float], seed: int) -> tuple[int, int]:
    """Which source sample ``position`` comes from, and its index among that source's samples.

    Every block of ``BLOCK`` positions holds the same number of samples of each source, shuffled;
    a source's indices count up without gaps or repeats as the position grows.
    """
    shares = quotas(tuple(weights))
    block, offset = divmod(position, BLOCK)
    source, rank = _shuffled_block(block, shares, seed)[offset]
    return source, block * shares[source] + rank


@lru_cache(maxsize=256)
def quotas(weights: tuple[float, ...]) -> tuple[int, ...]:
    """Samples of each source in one block: BLOCK together, at least one each."""
    total = sum(weights)
    exact = [weight / total * BLOCK for weight in weights]
    shares = [max(1, int(share)) for share in exact]
    while (missing := BLOCK - sum(shares)) != 0:
        sign = 1 if missing > 0 else -1
        movable = [i for i, share in enumerate(shares) if share + sign >= 1]
        shares[max(movable, key=lambda i: sign * (exact[i] - shares[i]))] += sign
    return tuple(shares)


@lru_cache(maxsize=16)
def _shuffled_block(block: int, shares: tuple[int, ...], seed: int) -> tuple[tuple[int, int], ...]:
    """(source, rank among this block's samples of that source) at every offset in the block."""
    sources = [source for source, share in enumerate(shares) for _ in range(share)]
    key = stable_hash(seed, "mixture", block)
    order = sorted(range(BLOCK), key=lambda slot: _mix(key + slot))
    seen = [0] * len(shares)
    slots = []
    for slot in order:
        source = sources[slot]
        slots.append((source, seen[source]))
        seen[source] += 1
    return tuple(slots)


@lru_cache(maxsize=4096)
def _round_keys(seed: int) -> tuple[int, ...]:
    return tuple(stable_hash(seed, "round", i) for i in range(_NUM_ROUNDS))


def _mix(value: int) -> int:
    """splitmix64's finaliser: every input bit reaches every output bit."""
    value = (value & _MASK) + 0x9E3779B97F4A7C15 & _MASK
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & _MASK
    return value ^ (value >> 31)
