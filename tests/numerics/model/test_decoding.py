"""Decoding with a cache is the model that was trained, a few positions at a time.

What would break for a user: text written by another model than the one whose loss was reported; a
prompt whose answer depends on the longer prompt beside it.
"""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from moc.model import MemoryConfig, ModelConfig, RouterConfig, build_model
from moc.ops import routed_attention, take_chapters
from tests.support.oracle import naive_logits, unfused
from tests.support.small_models import (
    CAUSAL,
    DENSE,
    MEMORY,
    MIXINGS,
    TAPS,
    W,
    lively,
    take_turns,
    tokens_of,
    with_router,
)

LENGTH = 4 * W + 3
PROMPTS = (5, 1, 2 * W)  # inside a segment, a single token, up to a border
# Tokens of each row, call by call; what a row has less than the longest is padded on the right.
ONE_BY_ONE = [PROMPTS, *[(1, 1, 1)] * (LENGTH - max(PROMPTS))]
# copies of chapters are kept while tokens come one by one, go with a longer call, and come again
MIXED = [
    PROMPTS, *[(1, 1, 1)] * 2, (0, 1, 1), (1, 1, 1), (2 * W + 1, 3, 2), *[(1, 1, 1)] * 3, (1, W, 0),
    (1, 1, 1),
]  # fmt: skip
IN_CHUNKS = [PROMPTS, (3, 6, 1), (1, 1, 1), (0, 2, W), (2 * W, 5, 3), (2, 0, 2)]


@torch.no_grad()
def decode(model, tokens_BL, calls, *, filler=10, **policy):
    """Logits (B, fed, V) of tokens fed call by call, NaN where a row was fed fewer."""
    batch = len(tokens_BL)
    cache = model.new_cache(batch, sum(max(counts) for counts in calls), **policy)
    fed = [0] * batch
    totals = [sum(counts[b] for counts in calls) for b in range(batch)]
    logits_BLV = torch.full((batch, max(totals), model.config.vocab_size), float("nan"))
    logits_BLV = logits_BLV.to(model.embedding.weight.dtype)
    for counts in calls:
        width = max(counts)
        chunk_BL = torch.full((batch, width), filler)
        for b, count in enumerate(counts):
            chunk_BL[b, :count] = tokens_BL[b, fed[b] : fed[b] + count]
        real_BL = torch.arange(width)[None] < torch.tensor(counts)[:, None]
        out = model(chunk_BL, None if real_BL.all() else real_BL, cache=cache)
        for b, count in enumerate(counts):
            logits_BLV[b, fed[b] : fed[b] + count] = out.logits_BLV[b, :count]
            fed[b] += count
    return logits_BLV


def difference(found_BLV, expected_BLV):
    """Largest difference of the logits of tokens that were fed, all of which must be there."""
    fed_BL = ~found_BLV.isnan().all(-1)
    assert fed_BL.sum() > 30
    assert found_BLV[fed_BL].isfinite().all()
    return (found_BLV - expected_BLV[:, : found_BLV.shape[1]])[fed_BL].abs().max().item()


@pytest.mark.parametrize(
    ("scope", "mixing", "tap", "variant"), list(itertools.product(CAUSAL, MIXINGS, TAPS, "AB"))
)
def test_decoding_equals_one_pass_over_the_whole_text(scope, mixing, tap, variant):
    """Prompts of three lengths in one batch, then several segments, one by one and in chunks."""
    model = lively(with_router(scope, tap=tap, mixing=mixing, variant=variant)).eval()
    tokens_BL = tokens_of(3, LENGTH)
    with torch.no_grad():
        out = model(tokens_BL)
    assert all(len(layer.index_BGN[0].unique(dim=0)) > 1 for layer in out.routing)
    for calls in (ONE_BY_ONE, IN_CHUNKS):
        assert difference(decode(model, tokens_BL, calls), out.logits_BLV) <= 1e-4


@pytest.mark.parametrize(("scope", "mixing"), list(itertools.product(CAUSAL, MIXINGS)))
def test_single_tokens_and_longer_calls_may_alternate(scope, mixing):
    """To a float64 rounding: the copies of chapters that single tokens read are those in force."""
    model = lively(with_router(scope, mixing=mixing)).double().eval()
    tokens_BL = tokens_of(3, 6 * W)
    with torch.no_grad():
        expected_BLV = model(tokens_BL).logits_BLV
    for calls in (ONE_BY_ONE, IN_CHUNKS, MIXED):
        assert difference(decode(model, tokens_BL, calls), expected_BLV) <= 1e-11


@pytest.mark.parametrize(("scope", "mixing"), list(itertools.product(CAUSAL, MIXINGS)))
def test_weights_that_underflow_decode_as_in_one_pass(scope, mixing):
    """A router so sure of itself that the other picks weigh exactly nothing."""
    model = lively(with_router(scope, mixing=mixing)).eval()
    for layer in (0, 2):
        model.blocks[layer].memory.router.linear.weight.data *= 300
    tokens_BL = tokens_of(3, 6 * W)
    with torch.no_grad():
        out = model(tokens_BL)
    assert all((layer.weight_BGN == 0).any() for layer in out.routing)
    assert difference(decode(model, tokens_BL, MIXED), out.logits_BLV) <= 1e-4


@pytest.mark.parametrize("calls", [ONE_BY_ONE, IN_CHUNKS], ids=["one by one", "chunks"])
@pytest.mark.parametrize(
    "memory",
    [
        None,
        replace(MEMORY, num_routed=None),
        replace(MEMORY, num_routed=None, mixing="per_chapter"),
        replace(MEMORY, router=RouterConfig(segment_tokens=1, window_tokens=1)),
        replace(MEMORY, router=RouterConfig(segment_tokens=50, window_tokens=2)),
        replace(MEMORY, num_shared=0, router=RouterConfig(segment_tokens=W)),
        replace(MEMORY, dim=8, num_heads=2, num_kv_heads=1, router=RouterConfig(segment_tokens=3)),
        replace(MEMORY, layers="all", layers_per_bank=1, router=RouterConfig(segment_tokens=W)),
    ],
)
def test_other_models_decode_as_they_were_trained(memory, calls):
    """Dense, without a router, segments of one position and of more than the text, two banks."""
    model = lively(replace(DENSE, memory=memory)).eval()
    tokens_BL = tokens_of(3, LENGTH)
    with torch.no_grad():
        expected_BLV = model(tokens_BL).logits_BLV
    assert difference(decode(model, tokens_BL, calls), expected_BLV) <= 1e-4


@pytest.mark.parametrize("scope", [*CAUSAL, "sequence"])
def test_a_selection_bias_holds_while_decoding(scope):
    config = with_router(scope)
    config.memory.router = replace(config.memory.router, bias_rate=0.01)
    model, tokens_BL = lively(config).eval(), tokens_of(3, LENGTH)
    with torch.no_grad():
        unbiased_BLV = model(tokens_BL).logits_BLV
        for bias_C in model.buffers():
            bias_C.normal_(generator=torch.Generator().manual_seed(0))
        expected_BLV = model(tokens_BL, prompt_mask() if scope == "sequence" else None).logits_BLV
    assert (expected_BLV - unbiased_BLV).abs().max() > 0.1
    assert difference(decode(model, tokens_BL, IN_CHUNKS), expected_BLV) <= 1e-4


@pytest.mark.parametrize("scope", CAUSAL)
def test_chapters_taken_in_turn_are_the_same_while_decoding(scope):
    model, tokens_BL = lively(with_router(scope)).eval(), tokens_of(3, LENGTH)
    take_turns(model)
    with torch.no_grad():
        expected_BLV = model(tokens_BL).logits_BLV
    assert difference(decode(model, tokens_BL, IN_CHUNKS), expected_BLV) <= 1e-4


@pytest.mark.parametrize("scope", [*CAUSAL, "sequence"])
def test_padding_and_the_other_rows_play_no_part(scope):
    """A prompt beside others, over any filler, decodes as it does alone."""
    model, tokens_BL = lively(with_router(scope)).eval(), tokens_of(3, LENGTH)
    together_BLV = decode(model, tokens_BL, IN_CHUNKS)
    refilled_BLV = decode(model, tokens_BL, IN_CHUNKS, filler=0)
    assert difference(refilled_BLV, together_BLV) <= 1e-5
    for b in range(3):
        calls = [(counts[b],) for counts in IN_CHUNKS if counts[b]]
        alone_LV = decode(model, tokens_BL[b : b + 1], calls)[0]
        assert (alone_LV - together_BLV[b, : len(alone_LV)]).abs().max() <= 1e-4


@pytest.mark.parametrize("policy", ["prompt", "running"])
@pytest.mark.parametrize("scope", [*CAUSAL, "sequence"])
def test_rows_may_end_while_others_go_on(scope, policy):
    """Row 1 ends in the middle of a segment; those that stay change places."""
    model, tokens_BL = lively(with_router(scope)).eval(), tokens_of(3, LENGTH)
    whole_BLV = decode(model, tokens_BL, [PROMPTS, (2, 2, 2), *[(1, 1, 1)] * 6], policy=policy)
    cache = model.new_cache(3, LENGTH + 9, policy=policy)
    real_BL = torch.arange(max(PROMPTS)) < torch.tensor(PROMPTS)[:, None]
    with torch.no_grad():
        model(tokens_BL[:, : max(PROMPTS)], real_BL, cache=cache)
        chunk_BL = torch.stack([row[n : n + 2] for row, n in zip(tokens_BL, PROMPTS, strict=True)])
        model(chunk_BL, cache=cache)
        cache.keep_rows(torch.tensor([2, 0]))
        for step in range(6):
            places = [(b, PROMPTS[b] + 2 + step) for b in (2, 0)]
            new_BL = torch.stack([tokens_BL[b, place][None] for b, place in places])
            logits_BV = model(new_BL, cache=cache).logits_BLV[:, 0]
            for row_V, (b, place) in zip(logits_BV, places, strict=True):
                assert (row_V - whole_BLV[b, place]).abs().max() <= 1e-4


@pytest.mark.parametrize(("scope", "mixing"), list(itertools.product(CAUSAL, MIXINGS)))
def test_rows_kept_take_their_copied_chapters_along(scope, mixing):
    """After some single tokens a row ends and another goes on twice, over a border of segments."""
    model = lively(with_router(scope, mixing=mixing)).double().eval()
    tokens_BL = tokens_of(3, LENGTH)
    with torch.no_grad():
        expected_BLV = model(tokens_BL).logits_BLV
        cache = model.new_cache(3, LENGTH)
        real_BL = torch.arange(max(PROMPTS)) < torch.tensor(PROMPTS)[:, None]
        model(tokens_BL[:, : max(PROMPTS)], real_BL, cache=cache)
        rows = [0, 1, 2]
        for step in range(3 * W - 2):
            if step == 3:
                rows = [2, 0, 2]
                cache.keep_rows(torch.tensor(rows))
            places = [PROMPTS[b] + step for b in rows]
            logits_BV = model(tokens_BL[rows, places][:, None], cache=cache).logits_BLV[:, 0]
            assert (logits_BV - expected_BLV[rows, places]).abs().max() <= 1e-11


# sequence routing, which cannot decode as it was trained


def prompt_mask():
    return torch.arange(LENGTH) < torch.tensor(PROMPTS)[:, None]


@pytest.mark.parametrize(("mixing", "tap", "variant"), list(itertools.product(MIXINGS, TAPS, "AB")))
def test_policy_prompt_freezes_the_routing_of_the_prompt(mixing, tap, variant):
    """The same as a pass over the whole text in which routing may pool the prompt alone."""
    config = with_router("sequence", tap=tap, mixing=mixing, variant=variant)
    model, tokens_BL = lively(config).eval(), tokens_of(3, LENGTH)
    with torch.no_grad():
        frozen_BLV = model(tokens_BL, prompt_mask()).logits_BLV
        whole_BLV = model(tokens_BL).logits_BLV
    assert (frozen_BLV - whole_BLV).abs().max() > 0.1
    for calls in (ONE_BY_ONE, IN_CHUNKS):
        found_BLV = decode(model, tokens_BL, calls, policy="prompt")
        assert difference(found_BLV, frozen_BLV) <= 1e-4


@pytest.mark.parametrize("window_tokens", [None, 1, 4])
@pytest.mark.parametrize(
    ("mixing", "tap", "variant"),
    [("joint", "block_input", "A"), ("per_chapter", "post_attention", "B"),
     ("log_bias", "block_input", "B"), ("joint", "post_attention", "A")],
)  # fmt: skip
def test_policy_running_pools_what_there_is(mixing, tap, variant, window_tokens):
    """Against loops in float64: a prompt's positions see the prompt, later ones all up to
    themselves, or the last ``window_tokens`` of it. Earlier positions keep what they read."""
    config = ModelConfig(
        vocab_size=11,
        num_layers=2,
        dim=8,
        num_heads=2,
        num_kv_heads=1,
        mlp_dim=10,
        memory=MemoryConfig(
            num_chapters=5,
            num_routed=2,
            chapter_tokens=3,
            layers="all",
            mixing=mixing,
            variant=variant,
            router=RouterConfig(scope="sequence", tap=tap),
        ),
    )
    model = build_model(config).double().eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.6, generator=generator)
    prompts, length = (4, 2, 6), 12
    tokens_BL = torch.randint(11, (3, length), generator=generator)
    rest = [length - n for n in prompts]
    one_by_one = [tuple(int(step < n) for n in rest) for step in range(max(rest))]
    settings = {"policy": "running", "window_tokens": window_tokens}
    by_token = decode(model, tokens_BL, [prompts, *one_by_one], **settings)
    chunks = [prompts, (2, 5, 1), (6, 1, 2), (0, 4, 3)]
    by_chunk = decode(model, tokens_BL, chunks, **settings)
    weights = unfused(config, dict(model.named_parameters()))
    for b, prompt in enumerate(prompts):

        def sees(t, prompt=prompt):
            start = 0 if window_tokens is None else max(0, t + 1 - window_tokens)
            return range(prompt) if t < prompt else range(start, t + 1)

        expected_LV = naive_logits(
            config, weights, tokens_BL[b].tolist(), bank_of_layer={0: 0, 1: 0}, sees=sees
        )
        torch.testing.assert_close(by_token[b], expected_LV, rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(by_chunk[b], expected_LV, rtol=1e-9, atol=1e-10)
    frozen = decode(model, tokens_BL, chunks, policy="prompt")
    assert (frozen - by_chunk).abs().max() > 1e-2  # the policies are not the same


# cost and limits


@pytest.mark.parametrize("scope", [*CAUSAL, "sequence"])
def test_a_chapter_is_projected_once(scope):
    """However many rows, calls and positions read it, and not before one does."""
    model = lively(with_router(scope, num_chapters=40)).eval()
    projected = {}
    for layer in (0, 2):
        read = model.blocks[layer].memory
        rows = projected[layer] = []

        def counted(chapters_UTM, rows=rows, project=read.project):
            rows.extend(chapters_UTM)
            return project(chapters_UTM)

        read.project = counted
    tokens_BL = tokens_of(3, LENGTH)
    cache = model.new_cache(3, LENGTH, policy="running")
    read_by = {0: set(), 2: set()}
    with torch.no_grad():
        for chunk_BL in tokens_BL.split([5, 1, 1, 6, 1, 1, 4], dim=1):
            for layer, routing in zip((0, 2), model(chunk_BL, cache=cache).routing, strict=True):
                read_by[layer] |= set(routing.index_BGN.flatten().tolist())
    bank_CTM = model.banks[0].tokens
    for layer, rows in projected.items():
        found = [int((bank_CTM == row).all(-1).all(-1).nonzero()) for row in rows]
        assert sorted(found) == sorted(read_by[layer])
        assert len(found) < 40


@pytest.mark.parametrize("scope", [*CAUSAL, "sequence", None])
def test_the_router_is_asked_only_where_a_choice_may_change(scope, monkeypatch):
    """And the bank only then, whatever is known: fetching may be a collective, in which every rank
    must take part, so that the places of the tokens alone decide."""
    memory = {"num_routed": None} if scope is None else {}
    model = lively(with_router(scope or "segment", **memory)).eval()
    asked, fetched = [], []
    for layer in (0, 2) if scope else ():
        router = model.blocks[layer].memory.router

        def counted(*arguments, choose=router.choose):
            asked.append(arguments)
            return choose(*arguments)

        router.choose = counted

    def counted_take(bank_CTM, chapter_U):
        fetched.append(chapter_U)
        return take_chapters(bank_CTM, chapter_U)

    monkeypatch.setattr("moc.model.decode.kept_chapters.take_chapters", counted_take)
    tokens_BL = tokens_of(3, LENGTH)
    cache = model.new_cache(3, LENGTH + W)
    lengths = [0, 0, 0]
    with torch.no_grad():
        for counts in [*IN_CHUNKS, (1, 1, 1), (1, 1, 1)]:
            asked.clear()
            fetched.clear()
            real_BL = torch.arange(max(counts)) < torch.tensor(counts)[:, None]
            model(tokens_BL[:, : max(counts)], real_BL, cache=cache)
            may_change = lengths == [0, 0, 0]
            if scope in CAUSAL:
                width = 1 if scope == "token" else W
                may_change = any((n + i) % width == 0 for n in lengths for i in range(max(counts)))
            assert len(fetched) == (2 if may_change else 0)
            assert len(asked) == (len(fetched) if scope else 0)
            lengths = [n + count for n, count in zip(lengths, counts, strict=True)]


@pytest.mark.parametrize("scope", CAUSAL)
def test_no_chapter_is_projected_for_padding(scope):
    """Rows of one and of many tokens: what the short one reads is what it reads alone."""
    tokens_BL = tokens_of(2, 4 * W)
    counts = (2, 4 * W)
    wanted, fetched = set(), set()
    with torch.no_grad():
        for rows in ([0], [1], [0, 1]):
            model = lively(with_router(scope, num_chapters=60)).eval()
            read = model.blocks[0].memory
            found = wanted if len(rows) == 1 else fetched

            def counted(chapters_UTM, found=found, project=read.project):
                found |= {row.numpy().tobytes() for row in chapters_UTM}
                return project(chapters_UTM)

            read.project = counted
            length = max(counts[row] for row in rows)
            real_BL = torch.arange(length) < torch.tensor([counts[row] for row in rows])[:, None]
            cache = model.new_cache(len(rows), length)
            model(tokens_BL[rows, :length], real_BL, cache=cache)
    assert fetched == wanted


def test_a_call_of_many_tokens_copies_chapters_for_segments_and_not_for_positions(monkeypatch):
    model = lively(with_router("segment")).eval()
    copied = []

    def counted(q_BLHE, k_CTJE, v_CTJE, index_BPN, *arguments, **how):
        copied.append(index_BPN.shape[1])
        return routed_attention(q_BLHE, k_CTJE, v_CTJE, index_BPN, *arguments, **how)

    monkeypatch.setattr("moc.model.decode.memory_state.routed_attention", counted)
    tokens_BL = tokens_of(2, 4 * W)
    cache = model.new_cache(2, 4 * W)
    with torch.no_grad():
        model(tokens_BL[:, : 2 * W + 1], cache=cache)  # three segments
        model(tokens_BL[:, 2 * W + 1 : 3 * W], cache=cache)  # the rest of the third
        assert copied == [3, 3, 1, 1]
        model(tokens_BL[:, :1], cache=cache)
        model(tokens_BL[:, :1], cache=cache)  # reads copies that are kept from now on
    assert copied == [3, 3, 1, 1, 1, 1]


def test_a_full_cache_says_so_and_can_still_be_used():
    model, tokens_BL = lively(with_router("segment")).eval(), tokens_of(1, 8)
    cache = model.new_cache(1, 6)
    with torch.no_grad():
        model(tokens_BL[:, :4], cache=cache)
        with pytest.raises(ValueError, match=r"^the cache has room for 6 tokens a row, not for 7$"):
            model(tokens_BL[:, 4:7], cache=cache)
        logits_BLV = model(tokens_BL[:, 4:6], cache=cache).logits_BLV
        expected_BLV = model(tokens_BL[:, :6]).logits_BLV[:, 4:]
    assert (logits_BLV - expected_BLV).abs().max() <= 1e-4


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"policy": "future"}, "^policy 'future' is none of prompt, running$"),
        ({"window_tokens": 0}, "^window_tokens must be at least 1, or None; it is 0$"),
        ({"policy": "running", "window_tokens": -3}, "window_tokens must be at least 1.* is -3$"),
    ],
)
def test_settings_out_of_range_are_refused_in_one_line(settings, words):
    with pytest.raises(ValueError, match=words):
        lively(with_router("sequence")).new_cache(1, 6, **settings)
