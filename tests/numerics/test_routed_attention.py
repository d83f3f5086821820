"""Fast routed attention against a loop over positions, in float64, with gradients.

What would break for a user: positions reading another group's chapters, or a bank whose gradients
forget that several groups read the same chapter.
"""

import math

import pytest
import torch

from moc.model.bank import gather_distinct
from moc.ops import routed_attention, shared_attention_mass
from moc.ops.reference import reference_attention

torch.set_num_threads(1)
BATCH, LENGTH, NUM_HEADS, HEAD_DIM, NUM_DISTINCT, TOKENS = 2, 8, 4, 3, 6, 2
MIXINGS = ("joint", "per_chapter", "log_bias", "unweighted")


def make_rows(kind, num_groups):
    """(B, G, 3) chapters, distinct within a group: random ones, or chapter 4 in every group."""
    generator = torch.Generator().manual_seed(num_groups)
    draws = [
        torch.randperm(NUM_DISTINCT, generator=generator)[:3] for _ in range(BATCH * num_groups)
    ]
    if kind == "one_for_all":
        draws = [torch.tensor([4, *[c for c in row.tolist() if c != 4][:2]]) for row in draws]
    if kind == "same":
        draws = [draws[0]] * len(draws)
    return torch.stack(draws).view(BATCH, num_groups, 3)


def make_inputs(num_kv_heads, row_BGN):
    generator = torch.Generator().manual_seed(1)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    tensors = [
        draw(BATCH, LENGTH, NUM_HEADS, HEAD_DIM),
        draw(NUM_DISTINCT, TOKENS, num_kv_heads, HEAD_DIM),
        draw(NUM_DISTINCT, TOKENS, num_kv_heads, HEAD_DIM),
        draw(*row_BGN.shape).softmax(-1),
    ]
    return [tensor.requires_grad_() for tensor in tensors], draw(*tensors[0].shape)


def run(function, tensors, row_BGN, upstream, mixing):
    q, k, v, weight = (tensor.detach().clone().requires_grad_() for tensor in tensors)
    out = function(q, k, v, row_BGN, weight, mixing=mixing)
    (out * upstream).sum().backward()
    grads = {"q": q.grad, "k": k.grad, "v": v.grad, "weight": weight.grad}
    return out, {name: grad for name, grad in grads.items() if grad is not None}


@pytest.mark.parametrize("kind", ["random", "one_for_all", "same"])
@pytest.mark.parametrize("num_groups", [1, 2, 4])
@pytest.mark.parametrize("mixing", MIXINGS)
def test_groups_read_their_own_chapters_and_chapters_learn_from_every_group(
    mixing, num_groups, kind
):
    row_BGN = make_rows(kind, num_groups)
    tensors, upstream = make_inputs(2, row_BGN)
    out, grads = run(routed_attention, tensors, row_BGN, upstream, mixing)
    expected, expected_grads = run(reference_attention, tensors, row_BGN, upstream, mixing)
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(grads, expected_grads, rtol=1e-9, atol=1e-11)
    unread = sorted(set(range(NUM_DISTINCT)) - set(row_BGN.flatten().tolist()))
    assert not grads["k"][unread].any() and not grads["v"][unread].any()


@pytest.mark.parametrize("num_kv_heads", [1, 2, 4])
def test_query_heads_share_key_heads_in_consecutive_runs(num_kv_heads):
    row_BGN = make_rows("random", 2)
    tensors, upstream = make_inputs(num_kv_heads, row_BGN)
    out, grads = run(routed_attention, tensors, row_BGN, upstream, "joint")
    expected, expected_grads = run(reference_attention, tensors, row_BGN, upstream, "joint")
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(grads, expected_grads, rtol=1e-9, atol=1e-11)


def test_two_tokens_by_hand():
    """One position, chapters of one token, weights 3/4 and 1/4: every mixing in closed form."""
    q = torch.full((1, 1, 1, 4), 0.5, dtype=torch.float64)  # q.k / sqrt(4) = sum(k) / 4
    k = torch.tensor([[4.0, 0, 0, 0], [0, 8.0, 0, 0]], dtype=torch.float64).view(2, 1, 1, 4)
    v = torch.tensor([[1.0, 0, 0, 0], [0, 1.0, 0, 0]], dtype=torch.float64).view(2, 1, 1, 4)
    row = torch.tensor([[[0, 1]]])
    weight = torch.tensor([[[0.75, 0.25]]], dtype=torch.float64)
    share = {
        "joint": (math.exp(0.75), math.exp(0.5)),  # scores 1 and 2, times the weights
        "log_bias": (0.75 * math.exp(1), 0.25 * math.exp(2)),
        "unweighted": (math.exp(1), math.exp(2)),
        "per_chapter": (0.75, 0.25),
    }
    for mixing, (first, second) in share.items():
        values = (0.75, 0.25) if mixing == "joint" else (1.0, 1.0)
        total = first + second
        expected = [first / total * values[0], second / total * values[1], 0.0, 0.0]
        out = routed_attention(q, k, v, row, weight, mixing=mixing)
        assert out.flatten().tolist() == pytest.approx(expected, rel=1e-12)


def test_equal_weights_make_log_bias_ignore_them():
    row_BGN = make_rows("random", 2)
    (q, k, v, _), _ = make_inputs(2, row_BGN)
    weight = torch.full(row_BGN.shape, 1 / 3, dtype=torch.float64)
    biased, plain = (
        routed_attention(q, k, v, row_BGN, weight, mixing=mixing)
        for mixing in ("log_bias", "unweighted")
    )
    torch.testing.assert_close(biased, plain, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mixing", ["joint", "per_chapter", "log_bias"])
def test_a_vanished_weight_leaves_finite_gradients(mixing):
    """A confident router's last chapters have float32 weights of 0: training must survive them."""
    row_BGN = make_rows("random", 1)
    tensors, upstream = make_inputs(2, row_BGN)
    tensors = [tensor.detach().float() for tensor in tensors]
    tensors[3] = torch.tensor([1.0, 0.0, 0.0]).expand(row_BGN.shape)
    out, grads = run(routed_attention, tensors, row_BGN, upstream.float(), mixing)
    assert out.isfinite().all()
    assert [name for name, grad in grads.items() if not grad.isfinite().all()] == []


def test_groups_must_divide_the_sequence():
    (q, k, v, weight), _ = make_inputs(2, make_rows("random", 1))
    row = torch.zeros(BATCH, 3, 3, dtype=torch.long)
    with pytest.raises(ValueError, match="3 routing groups do not divide 8 positions"):
        routed_attention(q, k, v, row, weight, mixing="joint")


def test_unknown_mixing_is_named():
    row = make_rows("random", 1)
    (q, k, v, weight), _ = make_inputs(2, row)
    with pytest.raises(ValueError, match="'sum' is none of joint, per_chapter, log_bias"):
        routed_attention(q, k, v, row, weight, mixing="sum")


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


@pytest.mark.parametrize("num_groups", [1, 2])
@pytest.mark.parametrize("num_shared", [0, 1, 3])
@pytest.mark.parametrize("mixing", MIXINGS)
def test_shared_mass_is_the_attention_on_shared_chapters(mixing, num_shared, num_groups):
    row_BGN = make_rows("random", num_groups)
    q, k, _, weight = (tensor.detach() for tensor in make_inputs(2, row_BGN)[0])
    total = 0.0
    for b in range(BATCH):
        for position in range(LENGTH):
            group = position // (LENGTH // num_groups)
            for head in range(NUM_HEADS):
                shares = []
                for n, row in enumerate(row_BGN[b, group].tolist()):
                    w = weight[b, group, n].item()
                    for t in range(TOKENS):
                        score = float(q[b, position, head] @ k[row, t, head // 2]) / HEAD_DIM**0.5
                        if mixing == "joint":
                            score *= w
                        scale = w if mixing == "log_bias" else 1.0
                        shares.append((n, math.exp(score) * scale))
                if mixing == "per_chapter":
                    total += weight[b, group, :num_shared].sum().item()
                else:
                    everything = sum(share for _, share in shares)
                    total += sum(share for n, share in shares if n < num_shared) / everything
    mass = shared_attention_mass(q, k, row_BGN, weight, num_shared, mixing=mixing)
    assert mass.dtype == torch.float32
    assert mass.item() == pytest.approx(total / (BATCH * LENGTH * NUM_HEADS), abs=1e-6)
