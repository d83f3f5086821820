"""The chapters that a batch reads, each once.

What would break for a user: chapters projected many times, or a reader given another's chapter.
"""

import pytest
import torch

from moc.model.memory.bank import distinct_rows
from moc.ops import take_rows

NUM_CHAPTERS = [40, 13, 9]  # the groups below read 1 + 2 * 2 * 3 chapters at most
BOUNDS = {40: 13, 13: 13, 9: 9}  # fewer than the bank has, as many, no more than it has


@pytest.fixture(params=["exact", "static"])
def exact(request, monkeypatch):
    """As on a CPU; and as in compiled code and on a GPU, which must not wait for the data."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: request.param == "static")
    return request.param == "exact"


def make_index(num_chapters, repeats):
    """(2, 2, 4) chapters: the shared one, and three of the others."""
    generator = torch.Generator().manual_seed(num_chapters)
    index_BGN = torch.randint(1, num_chapters, (2, 2, 4), generator=generator)
    if repeats:
        index_BGN[..., 1:] = torch.tensor([num_chapters - 1, 1, 4])
    index_BGN[..., 0] = 0
    return index_BGN


@pytest.mark.parametrize("with_slot", [False, True])
@pytest.mark.parametrize("num_chapters", NUM_CHAPTERS)
@pytest.mark.parametrize("repeats", [False, True])
def test_taken_rows_are_the_chosen_chapters(num_chapters, repeats, with_slot, exact):
    """Every index still finds its own chapter's tokens, whatever else is taken."""
    generator = torch.Generator().manual_seed(num_chapters)
    bank_CTM = torch.randn(num_chapters, 2, 3, generator=generator)
    index_BGN = make_index(num_chapters, repeats)
    chapter_U, row_BGN = distinct_rows(bank_CTM, index_BGN, 1)
    read = index_BGN.unique()
    if exact:
        assert torch.equal(chapter_U, read)
    else:  # U does not depend on the data
        assert len(chapter_U) == BOUNDS[num_chapters]
        assert chapter_U.unique().numel() == len(chapter_U)
    slot_UTM = torch.zeros(BOUNDS[num_chapters], 2, 3, requires_grad=True) if with_slot else None
    chapters_UTM = take_rows(bank_CTM, chapter_U, slot_UTM)
    assert chapters_UTM.shape == (len(chapter_U), 2, 3)
    for place in torch.cartesian_prod(*map(torch.arange, index_BGN.shape)).tolist():
        chapter, row = index_BGN[tuple(place)], row_BGN[tuple(place)]
        assert torch.equal(chapters_UTM[row], bank_CTM[chapter])
    # a chapter chosen twice is one row: it is projected once
    assert row_BGN.unique().numel() == read.numel()


@pytest.mark.parametrize("num_chapters", NUM_CHAPTERS)
@pytest.mark.parametrize("repeats", [False, True])
def test_gradients_reach_the_bank_or_its_slot_once_per_reader(num_chapters, repeats, exact):
    index_BGN = make_index(num_chapters, repeats)
    expected_CTM = torch.zeros(num_chapters, 1, 2, dtype=torch.float64)
    for chapter in index_BGN.flatten().tolist():
        expected_CTM[chapter] += 1
    bank_CTM = torch.randn(num_chapters, 1, 2, dtype=torch.float64, requires_grad=True)
    chapter_U, row_BGN = distinct_rows(bank_CTM, index_BGN, 1)
    take_rows(bank_CTM, chapter_U)[row_BGN].sum().backward()
    assert torch.equal(bank_CTM.grad, expected_CTM)

    bank_CTM.grad = None
    num_rows = BOUNDS[num_chapters]
    slot_UTM = torch.zeros(num_rows, 1, 2, dtype=torch.float64, requires_grad=True)
    take_rows(bank_CTM, chapter_U, slot_UTM)[row_BGN].sum().backward()
    assert bank_CTM.grad is None and slot_UTM.grad.shape == slot_UTM.shape
    # rows beyond the chapters mean nothing
    assert torch.equal(slot_UTM.grad[: len(chapter_U)], expected_CTM[chapter_U])
    assert expected_CTM.sum() == expected_CTM[chapter_U].sum()
