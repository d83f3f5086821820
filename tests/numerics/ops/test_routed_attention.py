"""Fast routed attention against a loop over positions, in float64, with gradients.

What would break for a user: positions reading another group's chapters, or a bank whose gradients
forget that several groups read the same chapter. Long groups copy chapters to their queries, short
ones queries to their chapters: all ways must be the same function.
"""

import math
from functools import partial

import pytest
import torch

from moc.ops import absorbed_attention, fused, kept_attention, reference, routed_attention
from moc.ops.cpu import bank, gathered, grouped
from moc.ops.cpu.plan import plan_groups
from moc.ops.shapes import moves_queries
from tests.support.oracle import naive_attention

torch.set_num_threads(1)
BATCH, LENGTH, NUM_HEADS, HEAD_DIM, NUM_DISTINCT, TOKENS = 2, 7, 4, 3, 6, 2
MIXINGS = ("joint", "joint_normed", "per_chapter", "log_bias", "unweighted")
WAYS = {"grouped": grouped, "gathered": gathered, "fused": fused, "reference": reference}
COPIES = ("gathered", "fused")  # whichever comes first and can do the mixing
GROUP_TOKENS = [7, 4, 3, 2, 1, 9]  # one group; short last ones; a token each; longer than the text


@pytest.fixture
def forced(request, monkeypatch):
    """One way, whatever the shapes; asserts that it was taken, where it can do the mixing."""
    for name in WAYS:
        if name == request.param:
            break
        monkeypatch.setattr(WAYS[name], "supports", lambda *_: False)
    if request.param == "grouped":
        monkeypatch.setattr(grouped, "moves_queries", lambda *_: True)
    calls = record_ways(monkeypatch)
    yield request.param
    assert set(calls) <= ({*COPIES} if request.param == "gathered" else {request.param})
    assert calls


def record_ways(monkeypatch):
    """The names of the ways taken from now on."""
    calls = []

    def recorded(name, function, *arguments, **how):
        calls.append(name)
        return function(*arguments, **how)

    for name, way in WAYS.items():
        monkeypatch.setattr(way, "attend", partial(recorded, name, way.attend))
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
    expected, expected_grads = run(naive_attention, *arguments)
    assert ("weight" in expected_grads) == (mixing != "unweighted")
    if mixing == "unweighted":  # no gradient, or none to speak of
        assert not grads.pop("weight", torch.zeros(())).any()
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(grads, expected_grads, rtol=1e-9, atol=1e-11)
    assert grads.keys() >= {"q", "k", "v"}
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


@pytest.mark.parametrize("forced", WAYS, indirect=True)
@pytest.mark.parametrize("mixing", MIXINGS)
def test_weights_need_not_sum_to_1(mixing, forced):
    """Left as they are: 1 for a shared chapter, 2.5 for the routed ones together."""
    row_BGN = make_rows("one_for_all", 2)
    tensors, upstream = make_inputs(2, row_BGN)
    tensors[3] = with_shared(tensors[3])
    check(tensors, row_BGN, upstream, mixing, group_tokens=4)


def with_shared(weight_BGN):
    routed_BGN = 2.5 * weight_BGN[..., 1:] / weight_BGN[..., 1:].sum(-1, keepdim=True)
    return torch.cat([torch.ones_like(weight_BGN[..., :1]), routed_BGN], -1)


@pytest.mark.parametrize("mixing", MIXINGS)
def test_tokens_of_a_bank_and_kept_copies_with_such_weights(mixing, monkeypatch):
    """One head for all; a position is a row of its own to ``kept_attention``."""
    monkeypatch.setattr(bank, "moves_queries", lambda *_: True)
    row_BGN = make_rows("random", LENGTH)
    tensors, upstream = make_inputs(1, row_BGN)
    q, m, _, weight = tensors

    def from_bank(q, m, _, row_BGN, weight, **how):
        chapter_U, scale = torch.arange(NUM_DISTINCT), HEAD_DIM**-0.5
        return absorbed_attention(
            q, m.detach()[:, :, 0], chapter_U, row_BGN, weight,
            scale=scale, norm_eps=None, slot_UTM=m[:, :, 0], **how,
        )  # fmt: skip

    def from_copies(q, m, _, row_BGN, weight, mixing, group_tokens):
        copies = m[row_BGN.flatten(0, 1)].flatten(1, 2).transpose(1, 2)
        arguments = q.flatten(0, 1), copies, copies, weight.flatten(0, 1)
        return kept_attention(*arguments, mixing=mixing, scale=HEAD_DIM**-0.5).view(q.shape)

    def by_hand(q, m, _, *arguments, **how):
        return naive_attention(q, m, m, *arguments, **how)

    ways = (
        run(way, (q, m, m, with_shared(weight)), row_BGN, upstream, mixing, 1)
        for way in (from_bank, from_copies, by_hand)
    )
    found, kept, expected = ((out, {n: x for n, x in g.items() if x.any()}) for out, g in ways)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(kept, expected, rtol=1e-9, atol=1e-11)


# queries sorted by chapter


def any_number_of_readers():
    """(1, 80, 2) rows of 6 chapters, read 68, 32, 36, 0, 0 and 24 times."""
    pairs = [0] * 68 + [1] * 32 + [2] * 36 + [5] * 24
    return torch.tensor([pairs[:80], pairs[80:]]).T[None].contiguous()


def planned(row_XN, *, num_chapters=NUM_DISTINCT, num_tokens=TOKENS, num_kv_heads=2):
    return plan_groups(
        row_XN,
        num_chapters=num_chapters,
        num_tokens=num_tokens,
        num_heads=NUM_HEADS,
        num_kv_heads=num_kv_heads,
    )


@pytest.mark.parametrize("mixing", MIXINGS)
def test_chapters_may_have_any_number_of_readers_or_none(mixing, monkeypatch):
    row_BGN = any_number_of_readers()
    # every position of its own chapters: these shapes choose the way themselves
    calls = record_ways(monkeypatch)
    tensors, upstream = make_inputs(2, row_BGN, length=80, tokens=5)
    check(tensors, row_BGN, upstream, mixing, group_tokens=1)
    assert calls == ["grouped"]


def test_chapters_with_like_numbers_of_readers_share_a_product():
    plan = planned(any_number_of_readers()[0])
    buckets = [(plan.members(bucket).tolist(), bucket.readers) for bucket in plan.buckets]
    assert buckets == [([0], 68), ([2, 1], 36), ([5], 24)]
    padding_S = plan.by_row(torch.ones(80, NUM_HEADS, 2), fill=7.0) == 7
    assert padding_S.sum() == (36 - 32) * NUM_HEADS


def test_a_product_stays_small_enough_for_the_caches():
    """Without a limit, chapters with one reader each would all be copied at once."""
    row_XN = torch.arange(2000).view(-1, 1)
    plan = planned(row_XN, num_chapters=2000, num_tokens=512)
    assert [bucket.num for bucket in plan.buckets] == [512, 512, 512, 464]  # 2^20 scores each
    row_XN = torch.zeros(2000, 1, dtype=torch.long)  # more than that for a single chapter
    assert [bucket.num for bucket in planned(row_XN, num_tokens=512).buckets] == [1]


@pytest.mark.parametrize(
    ("num_pairs", "num_chapters"),
    [(1, 1), (1, 500), (8, 1), (9, 1), (64, 8), (65, 8), (640, 3), (4096, 7), (5000, 2)],
)
@pytest.mark.parametrize("num_kv_heads", [1, 2, 4])
@pytest.mark.parametrize("spread", ["even", "one", "few"])
def test_every_pair_gets_rows_of_its_own_among_those_of_its_chapter(
    num_pairs, num_chapters, num_kv_heads, spread
):
    """However the pairs fall on the chapters."""
    generator = torch.Generator().manual_seed(num_pairs)
    row_P = torch.randint(num_chapters, (num_pairs,), generator=generator)
    if spread == "one":
        row_P[:] = num_chapters - 1
    if spread == "few":
        row_P = row_P.square() // num_chapters
    row_XN = row_P.view(-1, 1 if num_pairs % 2 else 2)
    plan = planned(row_XN, num_chapters=num_chapters, num_kv_heads=num_kv_heads)
    assert plan.row_XHN.shape == (len(row_XN), NUM_HEADS, row_XN.shape[1])
    assert plan.row_XHN.unique().numel() == plan.row_XHN.numel() == num_pairs * NUM_HEADS
    # a position's rows hold its queries, head by head
    query_XH1 = torch.arange(len(row_XN) * NUM_HEADS).view(-1, NUM_HEADS, 1)
    assert torch.equal(plan.source_S[plan.row_XHN], query_XH1.expand(plan.row_XHN.shape))

    # a bucket's products, in their order: chapter by chapter, key/value head by key/value head
    chapter_S, kv_head_S = torch.full((2, len(plan.source_S)), -1)
    for bucket in plan.buckets:
        here, shape = bucket.rows(bucket.num * num_kv_heads)
        assert shape == (bucket.num * num_kv_heads, bucket.readers * NUM_HEADS // num_kv_heads)
        assert (chapter_S[here] == -1).all() and len(chapter_S[here]) == shape[0] * shape[1]
        members_Z = plan.members(bucket).repeat_interleave(num_kv_heads)
        chapter_S[here] = members_Z.repeat_interleave(shape[1])
        kv_head_S[here] = torch.arange(num_kv_heads).repeat(bucket.num).repeat_interleave(shape[1])
    assert torch.equal(chapter_S[plan.row_XHN], row_XN[:, None].expand(plan.row_XHN.shape))
    kv_head_H1 = torch.arange(NUM_HEADS)[:, None] // (NUM_HEADS // num_kv_heads)
    assert torch.equal(kv_head_S[plan.row_XHN], kv_head_H1.expand(plan.row_XHN.shape))

    # chapters without readers take no part, and there is little padding
    assert torch.equal(plan.chapter_U.sort().values, row_P.unique())
    assert num_pairs * NUM_HEADS <= len(plan.source_S) <= 1.15 * num_pairs * NUM_HEADS
    if spread == "one":
        assert [bucket.readers for bucket in plan.buckets] == [num_pairs]


@pytest.mark.parametrize(
    ("length", "group_tokens", "tokens", "way"),
    [
        (32, 32, 5, "gathered"),  # a whole text: 2 x 3 chapters of 5 rows are copied
        (32, 1, 5, "grouped"),  # a token each: 64 x 3 chapters, or each query 3 times
        (32, 1, 1, "gathered"),  # ... a chapter of one row is no longer than a query
        (32, 1, 3, "gathered"),  # ... nor is one of three worth sorting for
        (31, 1, 5, "gathered"),  # a handful of queries: nobody shares a chapter
    ],
)
def test_what_is_copied_is_what_is_shorter(length, group_tokens, tokens, way, monkeypatch):
    num_groups = -(-length // group_tokens)
    row_BGN = make_rows("random", num_groups)
    tensors, upstream = make_inputs(2, row_BGN, length=length, tokens=tokens)
    calls = record_ways(monkeypatch)
    check(tensors, row_BGN, upstream, "joint", group_tokens)
    assert calls == [way]
    assert moves_queries(BATCH, length, num_groups, tokens) == (way == "grouped")


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
        "joint_normed": (math.exp(1), math.exp(2)),
        "log_bias": (0.75 * math.exp(1), 0.25 * math.exp(2)),
        "unweighted": (math.exp(1), math.exp(2)),
        "per_chapter": (0.75, 0.25),
    }
    for mixing, (first, second) in share.items():
        values = (0.75, 0.25) if mixing in ("joint", "joint_normed") else (1.0, 1.0)
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
    with pytest.raises(
        ValueError, match="'sum' is none of joint, joint_normed, per_chapter, log_bias"
    ):
        routed_attention(q, k, v, row, weight, mixing="sum", group_tokens=7)
