"""The chapters that a batch reads, each once.

What would break for a user: chapters projected many times, or a reader given another's chapter.
"""

import pytest
import torch

from moc.model.bank import gather_distinct


@pytest.mark.parametrize(
    ("num_chapters", "expected_rows"),
    [(40, 12), (12, 12), (9, 9)],
    ids=["fewer", "equal", "bank_smaller_than_batch"],
)
@pytest.mark.parametrize("repeats", [False, True])
def test_gathered_rows_are_the_chosen_chapters(num_chapters, expected_rows, repeats):
    """U does not depend on the data, and every index still finds its own chapter's tokens."""
    generator = torch.Generator().manual_seed(num_chapters)
    bank_CTM = torch.randn(num_chapters, 2, 3, generator=generator)
    index_BGN = torch.randint(num_chapters, (2, 2, 3), generator=generator)
    if repeats:
        index_BGN[:] = torch.tensor([num_chapters - 1, 0, 4])
    chapters_UTM, row_BGN = gather_distinct(bank_CTM, index_BGN)
    assert chapters_UTM.shape == (expected_rows, 2, 3)
    for place in torch.cartesian_prod(*map(torch.arange, index_BGN.shape)).tolist():
        chapter, row = index_BGN[tuple(place)], row_BGN[tuple(place)]
        assert torch.equal(chapters_UTM[row], bank_CTM[chapter])
    # a chapter chosen twice is one row: it is projected once
    assert row_BGN.unique().numel() == index_BGN.unique().numel()


def test_gathered_gradients_reach_the_bank_once_per_reader():
    bank_CTM = torch.randn(20, 1, 2, dtype=torch.float64, requires_grad=True)
    index_BGN = torch.tensor([[[3, 7], [7, 19]], [[3, 7], [0, 3]]])
    chapters_UTM, row_BGN = gather_distinct(bank_CTM, index_BGN)
    chapters_UTM[row_BGN].sum().backward()
    expected = torch.zeros(20, 1, 2, dtype=torch.float64)
    for chapter in index_BGN.flatten().tolist():
        expected[chapter] += 1
    assert torch.equal(bank_CTM.grad, expected)
