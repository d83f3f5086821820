"""To a chapter, lazy AdamW is AdamW on the steps that have read it, and nothing in between."""

import pytest
import torch

from moc.train.bank_gradients import RowGradient, merge
from moc.train.lazy_adamw import LazyAdamW

CHAPTERS, SHAPE = 6, (2, 3)
SETTINGS = {"betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
READ = [[0, 1, 4], [0, 4], [0, 2, 3], [1], [0, 1, 2, 4], []]  # by step; 5 never
RATES = [1e-2, 2e-2, 3e-2, 1e-2, 5e-3, 1e-2]


def start():
    return torch.randn(CHAPTERS, *SHAPE, generator=torch.Generator().manual_seed(0))


def gradient(step):
    return torch.randn(CHAPTERS, *SHAPE, generator=torch.Generator().manual_seed(100 + step))


def train_lazily(read=READ, rates=RATES):
    bank = torch.nn.Parameter(start())
    optimizer = LazyAdamW([{"params": [bank], "lazy": True}], lr=0.0, **SETTINGS)
    for step, (chapters, rate) in enumerate(zip(read, rates, strict=True)):
        optimizer.param_groups[0]["lr"] = rate
        index = torch.tensor(chapters, dtype=torch.long)
        optimizer.rows[bank] = RowGradient(index, gradient(step)[index])
        optimizer.step()
    return bank.detach(), optimizer.state[bank]


def test_every_chapter_is_trained_by_adamw_on_the_steps_that_read_it():
    """Bias correction counts its own updates, at those steps' learning rates; idle steps leave it
    where it is, without decay and without momentum."""
    bank, state = train_lazily()
    for chapter in range(CHAPTERS):
        alone = torch.nn.Parameter(start()[chapter])
        dense = torch.optim.AdamW([alone], lr=0.0, **SETTINGS)
        for step, (chapters, rate) in enumerate(zip(READ, RATES, strict=True)):
            if chapter in chapters:
                dense.param_groups[0]["lr"] = rate
                alone.grad = gradient(step)[chapter].clone()
                dense.step()
        torch.testing.assert_close(bank[chapter], alone.detach(), rtol=1e-6, atol=1e-7)
        assert state["step"][chapter] == sum(chapter in chapters for chapters in READ)
    assert torch.equal(bank[5], start()[5])


def test_read_at_every_step_it_is_dense_adamw():
    everything = [list(range(CHAPTERS))] * len(RATES)
    bank, _ = train_lazily(everything)
    dense_bank = torch.nn.Parameter(start())
    dense = torch.optim.AdamW([dense_bank], lr=0.0, fused=True, **SETTINGS)
    for step, rate in enumerate(RATES):
        dense.param_groups[0]["lr"] = rate
        dense_bank.grad = gradient(step)
        dense.step()
    torch.testing.assert_close(bank, dense_bank.detach(), rtol=1e-6, atol=1e-7)


def test_the_first_update_by_hand():
    """m-hat / sqrt(v-hat) is the gradient's sign, however late a chapter is first read."""
    bank = torch.nn.Parameter(torch.tensor([[[1.0]], [[2.0]]]))
    optimizer = LazyAdamW([{"params": [bank], "lazy": True}], lr=0.1, **SETTINGS)
    for chapter, value in [(0, 5.0)] * 50 + [(1, -3.0)]:
        optimizer.rows[bank] = RowGradient(torch.tensor([chapter]), torch.tensor([[[value]]]))
        optimizer.step()
    assert bank[1].item() == pytest.approx(2.0 * (1 - 0.1 * 0.1) + 0.1, rel=1e-6)


def test_other_groups_are_trained_as_by_adamw():
    weight, twin = (torch.nn.Parameter(torch.tensor([1.0, -2.0])) for _ in range(2))
    bank = torch.nn.Parameter(start())
    lazy = LazyAdamW([{"params": [weight]}, {"params": [bank], "lazy": True}], lr=0.1, **SETTINGS)
    dense = torch.optim.AdamW([twin], lr=0.1, **SETTINGS)
    for _ in range(3):
        weight.grad, twin.grad = torch.tensor([0.3, 0.1]), torch.tensor([0.3, 0.1])
        lazy.step()
        dense.step()
    assert torch.equal(weight, twin) and torch.equal(bank, start()) and not lazy.state[bank]


def test_more_chapters_than_are_updated_at_a_time(monkeypatch):
    whole, _ = train_lazily()
    monkeypatch.setattr("moc.train.lazy_adamw._VALUES", 2 * SHAPE[0] * SHAPE[1])
    pieces, _ = train_lazily()
    assert torch.equal(whole, pieces)


def test_row_gradients_are_summed_over_the_chapters_of_any():
    def rows(*chapters):
        index = torch.tensor(chapters)
        return RowGradient(index, index.float().add(1)[:, None, None].expand(-1, *SHAPE).clone())

    summed = merge([rows(0, 3), rows(3, 4), rows(0, 3)])
    assert summed.row_U.tolist() == [0, 3, 4]
    assert summed.grad_UX[:, 0, 0].tolist() == [2.0, 12.0, 5.0]
    assert summed.dense(CHAPTERS)[:, 0, 0].tolist() == [2.0, 0.0, 0.0, 12.0, 5.0, 0.0]
    same = merge([rows(1, 2), rows(1, 2)])
    assert same.row_U.tolist() == [1, 2] and same.grad_UX[:, 0, 0].tolist() == [4.0, 6.0]
