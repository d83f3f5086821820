"""The best of all pairs of half-keys, against a look at every pair in float64.

What would break for a user: a memory that reads a worse row than the best, or another one's.
"""

import pytest
import torch

from moc.ops import product_topk

torch.set_num_threads(1)
SIZES = [(3, 1), (2, 4), (3, 7), (4, 4), (5, 25), (16, 8), (30, 16), (64, 33)]  # n, k
BATCH = (3, 2)


def make_scores(num_half, dtype=torch.float64):
    generator = torch.Generator().manual_seed(num_half)
    shape = (2, *BATCH, num_half)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def by_hand(one, other, k):
    """Sums and indices of one position and head: every pair, sorted."""
    sums = [(a + b, i * len(other) + j) for i, a in enumerate(one) for j, b in enumerate(other)]
    assert len({value for value, _ in sums}) == len(sums)  # or the choice would be open
    return zip(*sorted(sums, reverse=True)[:k], strict=True)


@pytest.mark.parametrize(("num_half", "k"), SIZES)
def test_picks_the_best_of_all_pairs(num_half, k):
    one, other = make_scores(num_half)
    score, index = product_topk(one, other, k)
    assert score.shape == index.shape == (*BATCH, k)
    for x in range(BATCH[0]):
        for h in range(BATCH[1]):
            sums, indices = by_hand(one[x, h].tolist(), other[x, h].tolist(), k)
            assert index[x, h].tolist() == list(indices)
            assert score[x, h].tolist() == list(sums)


@pytest.mark.parametrize(("num_half", "k"), SIZES)
def test_gradients_go_to_the_halves_of_the_picked(num_half, k):
    halves = make_scores(num_half).requires_grad_()
    score, index = product_topk(*halves, k)
    upstream = torch.randn(score.shape, dtype=torch.float64)
    score.backward(upstream)
    expected = torch.zeros_like(halves)
    for x in range(BATCH[0]):
        for h in range(BATCH[1]):
            for place in range(k):
                first, second = divmod(index[x, h, place].item(), num_half)
                expected[0, x, h, first] += upstream[x, h, place]
                expected[1, x, h, second] += upstream[x, h, place]
    torch.testing.assert_close(halves.grad, expected, rtol=1e-12, atol=1e-12)


def test_equal_sums_are_still_different_pairs():
    """All scores alike, as in low precision and before training."""
    score, index = product_topk(torch.zeros(1, 1, 6), torch.zeros(1, 1, 6), 12)
    assert index.unique().numel() == 12
    assert not score.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_precision_picks_sums_as_large(dtype):
    one, other = make_scores(30, dtype)
    score, index = product_topk(one, other, 16)
    assert score.dtype == dtype
    every = (one[..., :, None] + other[..., None, :]).flatten(-2)
    assert torch.equal(every.gather(-1, index), score)
    assert torch.equal(every.sort(descending=True).values[..., :16], score)


def test_compiled_code_picks_the_same_without_a_break():
    halves = make_scores(16).requires_grad_()
    torch._dynamo.reset()
    compiled = torch.compile(product_topk, fullgraph=True, backend="aot_eager")
    found, expected = compiled(*halves, 8), product_topk(*halves, 8)
    torch.testing.assert_close(found, expected)
    grads = [torch.autograd.grad(score.square().sum(), halves)[0] for score, _ in (found, expected)]
    torch.testing.assert_close(*grads)


def test_says_that_there_are_not_so_many_keys():
    with pytest.raises(ValueError, match="5 keys to pick among 4"):
        product_topk(*torch.zeros(2, 1, 1, 2), 5)
