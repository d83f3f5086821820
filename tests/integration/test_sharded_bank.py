"""Chapters on their way between two ranks."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.conftest import Run
from tests.integration.test_two_ranks import log_of, result_of
from tests.support.ranks import launched_by_torchrun


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory, in_child: Run) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("shards")
    env = launched_by_torchrun(2)
    codes = in_child("shards", log=folder / "log", env=env, result=str(folder))
    assert codes == [0, 0], log_of(folder)
    return [result_of(folder, rank) for rank in (0, 1)]


def chapters(*numbers: int) -> torch.Tensor:
    """Those of the bank that counts its entries from 0."""
    return torch.tensor(numbers)[:, None, None] * 6.0 + torch.arange(6.0).reshape(2, 3)


def test_each_rank_gets_the_chapters_that_it_asks_for(ranks: list[dict[str, Any]]) -> None:
    first, second = (rank["9"] for rank in ranks)
    assert (first["owned"], second["owned"]) == ([0, 1, 2, 3, 4], [5, 6, 7, 8])
    assert torch.equal(first["whole"], chapters(*range(9)))
    assert torch.equal(first["fetched"], chapters(0, 4, 5, 8))
    assert torch.equal(second["fetched"], chapters(2, 4))


def test_owners_get_the_rows_of_every_rank(ranks: list[dict[str, Any]]) -> None:
    """Numbered in their shard."""
    expected = [
        [([0, 4], chapters(0, 4) + 1000), ([2, 4], chapters(2, 4) + 2000)],
        [([0, 3], chapters(5, 8) + 1000), ([], torch.empty(0, 2, 3))],
    ]
    for rank, parts in zip(ranks, expected, strict=True):
        for (row, values), (expected_row, expected_values) in zip(
            rank["9"]["sent"], parts, strict=True
        ):
            assert row.tolist() == expected_row
            assert torch.equal(values, expected_values)


def test_a_rank_may_own_nothing_and_another_ask_for_nothing(ranks: list[dict[str, Any]]) -> None:
    first, second = (rank["1"] for rank in ranks)
    assert (first["owned"], second["owned"]) == ([0], [])
    assert not len(first["fetched"])
    assert torch.equal(second["fetched"], chapters(0))
    assert [len(row) for row, _ in first["sent"]] == [0, 1]
    assert [len(row) for row, _ in second["sent"]] == [0, 0]


def test_a_gradient_that_would_get_lost_is_refused(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert "go to slots" in rank["without a slot"]
