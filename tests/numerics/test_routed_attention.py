"""Fast routed attention against a loop over positions, in float64, with gradients.

What would break for a user: positions reading another group's chapters, or a bank whose gradients
forget that several groups read the same chapter. Long groups copy chapters to their queries, short
ones queries to their chapters: both ways must be the same function.
"""

import math
import sys
from functools import partial

import pytest
import torch

from moc.ops import routed_attention, shared_attention_mass
from moc.ops.reference import reference_attention
from moc.ops.shapes import moves_queries, query_blocks

torch.set_num_threads(1)
ATTENTION = sys.modules["moc.ops.routed_attention"]  # the package exports its function's name
BATCH, LENGTH, NUM_HEADS, HEAD_DIM, NUM_DISTINCT, TOKENS = 2, 7, 4, 3, 6, 2
MIXINGS = ("joint", "per_chapter", "log_bias", "unweighted")
WAYS = {"_chapters_to_queries": False, "_queries_to_chapters": True}
GROUP_TOKENS = [7, 4, 3, 2, 1, 9]  # one group; short last ones; a token each; longer than the text


@pytest.fixture
def forced(request, monkeypatch):
    """Either way, whatever the shapes; asserts that it was taken."""
    monkeypatch.setattr(ATTENTION, "moves_queries", lambda *_: WAYS[request.param])
    calls = record_ways(monkeypatch)
    yield request.param
    assert set(calls) == {request.param}


def record_ways(monkeypatch):
    """The names of the ways taken from now on."""
    calls = []

    def recorded(name, function, *arguments):
        calls.append(name)
        return function(*arguments)

    for name in WAYS:
        monkeypatch.setattr(ATTENTION, name, partial(recorded, name, getattr(ATTENTION, name)))
    return calls


def make_rows(kind, num_groups):
    """(B, G, 3) chapters, distinct within a group: random ones, or chapter 4 in every group, or the
    same three for all."""
    generator = torch.Generator().manual_seed(num_groups)
    draws = [
        torch.randperm(NUM_DISTINCT, generator=generator)[:3] for _ in range(BATCH * num_groups)
    ]
    if kind == "one_for_all":
        draws = [torch.tensor([4, *[c for c in row.tolist() if c != 4][:2]]) for row in draws]
    if kind == "same":
        draws = [draws[0]] * len(draws)
    return torch.stack(draws).view(BATCH, num_groups, 3)


def make_inputs(num_kv_heads, row_BGN, *, length=LENGTH, num_distinct=NUM_DISTINCT, tokens=TOKENS):
    """Queries, keys, values and weights, then what the gradients start from."""
    generator = torch.Generator().manual_seed(1)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    tensors = [
        draw(len(row_BGN), length, NUM_HEADS, HEAD_DIM),
        draw(num_distinct, tokens, num_kv_heads, HEAD_DIM),
        draw(num_distinct, tokens, num_kv_heads, HEAD_DIM),
        draw(*row_BGN.shape).softmax(-1),
    ]
    return tensors, draw(*tensors[0].shape)


def run(function, tensors, row_BGN, upstream, mixing, group_tokens):
    q, k, v, weight = (tensor.detach().clone().requires_grad_() for tensor in tensors)
    out = function(q, k, v, row_BGN, weight, mixing=mixing, group_tokens=group_tokens)
    (out * upstream).sum().backward()
    grads = {"q": q.grad, "k": k.grad, "v": v.grad, "weight": weight.grad}
    return out, {name: grad for name, grad in grads.items() if grad is not None}


def check(tensors, row_BGN, upstream, mixing, group_tokens):
    """Output and all gradients are the loop's; those of chapters nobody reads are zero."""
    arguments = tensors, row_BGN, upstream, mixing, group_tokens
    out, grads = run(routed_attention, *arguments)
    expected, expected_grads = run(reference_attention, *arguments)
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(grads, expected_grads, rtol=1e-9, atol=1e-11)
    assert grads.keys() >= {"q", "k", "v"}
    assert ("weight" in grads) == (mixing != "unweighted")
    unread = sorted(set(range(len(tensors[1]))) - set(row_BGN.flatten().tolist()))
    assert not grads["k"][unread].any() and not grads["v"][unread].any()


@pytest.mark.parametrize("forced", WAYS, indirect=True)
@pytest.mark.parametrize("kind", ["random", "one_for_all", "same"])
@pytest.mark.parametrize("group_tokens", GROUP_TOKENS)
@pytest.mark.parametrize("mixing", MIXINGS)
def test_groups_read_their_own_chapters_and_chapters_learn_from_every_group(
    mixing, group_tokens, kind, forced
):
    row_BGN = make_rows(kind, -(-LENGTH // group_tokens))
    tensors, upstream = make_inputs(2, row_BGN)
    check(tensors, row_BGN, upstream, mixing, group_tokens)


@pytest.mark.parametrize("forced", WAYS, indirect=True)
@pytest.mark.parametrize("num_kv_heads", [1, 2, 4])
@pytest.mark.parametrize("mixing", MIXINGS)
def test_query_heads_share_key_heads_in_consecutive_runs(mixing, num_kv_heads, forced):
    row_BGN = make_rows("random", 2)
    tensors, upstream = make_inputs(num_kv_heads, row_BGN)
    check(tensors, row_BGN, upstream, mixing, group_tokens=4)


# queries in blocks of one chapter


def full_blocks():
    """(1, 20, 2) rows of 6 chapters in blocks of 8: 17 pairs (two blocks and one), 8 (exactly one),
    9, 0, 0 and 6 (less than one)."""
    pairs = [0] * 17 + [1] * 8 + [2] * 9 + [5] * 6
    return torch.tensor([pairs[:20], pairs[20:]]).T[None].contiguous()


@pytest.mark.parametrize("mixing", MIXINGS)
def test_chapters_may_fill_blocks_exactly_overflow_them_or_stay_unread(mixing, monkeypatch):
    row_BGN = full_blocks()
    assert query_blocks(row_BGN.numel(), NUM_DISTINCT)[1] == 8
    # every position of its own chapters: these shapes choose the way themselves
    calls = record_ways(monkeypatch)
    tensors, upstream = make_inputs(2, row_BGN, length=20, tokens=5)
    check(tensors, row_BGN, upstream, mixing, group_tokens=1)
    assert calls == ["_queries_to_chapters"]


@pytest.mark.parametrize(
    ("num_pairs", "num_chapters"),
    [(1, 1), (1, 500), (8, 1), (9, 1), (64, 8), (65, 8), (640, 3), (4096, 7), (5000, 2)],
)
@pytest.mark.parametrize("spread", ["even", "one", "few"])
def test_every_pair_gets_a_slot_of_its_own_in_a_block_of_its_chapter(
    num_pairs, num_chapters, spread
):
    """However the pairs fall on the chapters; the shapes depend on their number alone."""
    generator = torch.Generator().manual_seed(num_pairs)
    row_P = torch.randint(num_chapters, (num_pairs,), generator=generator)
    if spread == "one":
        row_P[:] = num_chapters - 1
    if spread == "few":
        row_P = row_P.square() // num_chapters
    slot_P, chapter_Z, size = ATTENTION._blocks(row_P, num_chapters)
    assert (len(chapter_Z), size) == query_blocks(num_pairs, num_chapters)
    assert slot_P.unique().numel() == num_pairs and slot_P.max() < len(chapter_Z) * size
    assert torch.equal(chapter_Z[slot_P // size], row_P)


@pytest.mark.parametrize(
    ("length", "group_tokens", "tokens", "way"),
    [
        (20, 20, 5, "_chapters_to_queries"),  # a whole text: 2 x 3 chapters of 5 rows are copied
        (20, 1, 5, "_queries_to_chapters"),  # a token each: 40 x 3 chapters, or each query 3 times
        (20, 1, 1, "_chapters_to_queries"),  # ... a chapter of one row is no longer than a query
    ],
)
def test_what_is_copied_is_what_is_shorter(length, group_tokens, tokens, way, monkeypatch):
    num_groups = -(-length // group_tokens)
    row_BGN = make_rows("random", num_groups)
    tensors, upstream = make_inputs(2, row_BGN, length=length, tokens=tokens)
    calls = record_ways(monkeypatch)
    check(tensors, row_BGN, upstream, "joint", group_tokens)
    assert calls == [way]
    asked = moves_queries(BATCH, length, num_groups, 3, tokens, NUM_DISTINCT)
    assert asked == WAYS[way]


# by hand


@pytest.mark.parametrize("forced", WAYS, indirect=True)
def test_two_tokens_by_hand(forced):
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
        out = routed_attention(q, k, v, row, weight, mixing=mixing, group_tokens=1)
        assert out.flatten().tolist() == pytest.approx(expected, rel=1e-12)


def test_equal_weights_make_log_bias_ignore_them():
    row_BGN = make_rows("random", 2)
    (q, k, v, _), _ = make_inputs(2, row_BGN)
    weight = torch.full(row_BGN.shape, 1 / 3, dtype=torch.float64)
    biased, plain = (
        routed_attention(q, k, v, row_BGN, weight, mixing=mixing, group_tokens=4)
        for mixing in ("log_bias", "unweighted")
    )
    torch.testing.assert_close(biased, plain, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("forced", WAYS, indirect=True)
@pytest.mark.parametrize("mixing", ["joint", "per_chapter", "log_bias"])
def test_a_vanished_weight_leaves_finite_gradients(mixing, forced):
    """A confident router's last chapters have float32 weights of 0: training must survive them."""
    row_BGN = make_rows("random", 2)
    tensors, upstream = make_inputs(2, row_BGN)
    tensors = [tensor.float() for tensor in tensors]
    tensors[3] = torch.tensor([1.0, 0.0, 0.0]).expand(row_BGN.shape)
    out, grads = run(routed_attention, tensors, row_BGN, upstream.float(), mixing, 4)
    assert out.isfinite().all()
    assert [name for name, grad in grads.items() if not grad.isfinite().all()] == []


@pytest.mark.parametrize("forced", WAYS, indirect=True)
@pytest.mark.parametrize("mixing", MIXINGS)
def test_chapters_that_nobody_reads_may_hold_anything(mixing, forced):
    """Decoding keeps room for chapters that it has not projected yet: memory of any content."""
    row_BGN = make_rows("same", 2)
    (q, k, v, weight), _ = make_inputs(2, row_BGN)
    expected = routed_attention(q, k, v, row_BGN, weight, mixing=mixing, group_tokens=4)
    unread = sorted(set(range(NUM_DISTINCT)) - set(row_BGN.flatten().tolist()))
    k[unread], v[unread] = float("nan"), float("inf")
    out = routed_attention(q, k, v, row_BGN, weight, mixing=mixing, group_tokens=4)
    assert torch.equal(out, expected)


def test_groups_must_cover_the_sequence():
    (q, k, v, weight), _ = make_inputs(2, make_rows("random", 3))
    row = make_rows("random", 3)
    for group_tokens in (2, 4):
        words = f"3 routing groups of {group_tokens} do not cover 7 positions"
        with pytest.raises(ValueError, match=words):
            routed_attention(q, k, v, row, weight, mixing="joint", group_tokens=group_tokens)


def test_unknown_mixing_is_named():
    row = make_rows("random", 1)
    (q, k, v, weight), _ = make_inputs(2, row)
    with pytest.raises(ValueError, match="'sum' is none of joint, per_chapter, log_bias"):
        routed_attention(q, k, v, row, weight, mixing="sum", group_tokens=7)


# how much of it falls on shared chapters


@pytest.mark.parametrize("group_tokens", [7, 4, 3, 1, 9])
@pytest.mark.parametrize("num_shared", [0, 1, 3])
@pytest.mark.parametrize("mixing", MIXINGS)
def test_shared_mass_is_the_attention_on_shared_chapters(mixing, num_shared, group_tokens):
    row_BGN = make_rows("random", -(-LENGTH // group_tokens))
    q, k, _, weight = make_inputs(2, row_BGN)[0]
    total = 0.0
    for b in range(BATCH):
        for position in range(LENGTH):
            group = position // group_tokens
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
    mass = shared_attention_mass(
        q, k, row_BGN, weight, num_shared, mixing=mixing, group_tokens=group_tokens
    )
    assert mass.dtype == torch.float32
    assert mass.item() == pytest.approx(total / (BATCH * LENGTH * NUM_HEADS), abs=1e-6)
