"""The order of samples: every sample once, the same everywhere, and the same tomorrow."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest

from moc.data.order import BLOCK, permute, quotas, sample_source


@pytest.mark.parametrize("count", [*range(1, 40), 100, 997, 1000])
def test_a_pass_visits_every_sample_exactly_once(count: int) -> None:
    for seed in (0, 1, 2**63):
        assert sorted(permute(i, count, seed) for i in range(count)) == list(range(count))


def test_permutations_look_random_and_differ_between_seeds() -> None:
    count = 2000
    first = [permute(i, count, 1) for i in range(count)]
    other = [permute(i, count, 2) for i in range(count)]
    assert sum(a == b for a, b in zip(first, other, strict=True)) < 20  # 1 expected
    assert sum(i == p for i, p in enumerate(first)) < 20
    neighbours = sum(abs(a - b) for a, b in pairwise(first)) / count
    assert abs(neighbours / (count / 3) - 1) < 0.1  # mean distance of two random places


def test_huge_ranges_need_no_memory() -> None:
    count = 10**15
    assert len({permute(i, count, 0) for i in range(1000)}) == 1000


@pytest.mark.parametrize("weights", [[1.0], [1, 1], [3, 1], [0.7, 0.2, 0.1], [1e-9, 1, 5]])
def test_a_mixture_neither_skips_nor_repeats_and_keeps_its_weights(weights: list[float]) -> None:
    seen: Counter[int] = Counter()
    for position in range(3 * BLOCK):
        source, index = sample_source(position, weights, seed=3)
        assert index == seen[source]  # brute force: how often this source came before
        seen[source] += 1
        if (position + 1) % BLOCK == 0:
            for i, weight in enumerate(weights):
                exact = weight / sum(weights) * (position + 1)
                assert abs(seen[i] - exact) <= 3 * len(weights)


def test_a_mixture_is_mixed_finely() -> None:
    sources = [sample_source(position, [1, 1], seed=0)[0] for position in range(BLOCK)]
    longest = max(len(run) for run in "".join(map(str, sources)).replace("01", "0 1").split())
    assert 2 < longest < 50
    assert sources != [sample_source(position, [1, 1], seed=1)[0] for position in range(BLOCK)]


def test_only_the_ratio_of_weights_matters() -> None:
    assert quotas((3.0, 1.0)) == quotas((0.75, 0.25)) == (750, 250)
    assert sum(quotas((1.0,) * 7)) == BLOCK


def test_the_order_is_the_one_of_earlier_versions() -> None:
    """If this changes, runs resumed after an upgrade would train on other samples."""
    assert [permute(i, 10, 0) for i in range(10)] == [5, 8, 7, 1, 3, 0, 2, 4, 9, 6]
    sources = [sample_source(i, [2, 1], 0)[0] for i in range(12)]
    assert sources == [0, 0, 0, 1, 0, 1, 0, 0, 1, 0, 0, 1]
