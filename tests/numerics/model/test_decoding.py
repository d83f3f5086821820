"""Decoding with a cache is the model that was trained, a few positions at a time.

What would break for a user: text written by another model than the one whose loss was reported; a
prompt whose answer depends on the longer prompt beside it.
"""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from moc.model import RouterConfig
from tests.support.decoding import (
    IN_CHUNKS,
    LENGTH,
    MIXED,
    ONE_BY_ONE,
    PROMPTS,
    decode,
    difference,
    prompt_mask,
)
from tests.support.small_models import (
    CAUSAL,
    DENSE,
    MEMORY,
    MIXINGS,
    ROUTER_INPUTS,
    W,
    chapters,
    lively,
    take_turns,
    tokens_of,
    with_router,
)


@pytest.mark.parametrize(
    ("scope", "mixing", "router_input", "variant"),
    list(itertools.product(CAUSAL, MIXINGS, ROUTER_INPUTS, "AB")),
)
def test_decoding_equals_one_pass_over_the_whole_text(scope, mixing, router_input, variant):
    """Prompts of three lengths in one batch, then several segments, one by one and in chunks."""
    model = lively(
        with_router(scope, router_input=router_input, mixing=mixing, variant=variant)
    ).eval()
    tokens_BL = tokens_of(3, LENGTH)
    with torch.no_grad():
        out = model(tokens_BL)
    assert all(len(layer.index_BGN[0].unique(dim=0)) > 1 for layer in out.addresses)
    for calls in (ONE_BY_ONE, IN_CHUNKS):
        assert difference(decode(model, tokens_BL, calls), out.logits_BLV) <= 1e-4


@pytest.mark.parametrize(("scope", "mixing"), list(itertools.product(CAUSAL, MIXINGS)))
def test_single_tokens_and_longer_calls_may_alternate(scope, mixing):
    """To a float64 rounding: the copies of chapters that single tokens read are current."""
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
        model.blocks[layer].memory.address.router.linear.weight.data *= 300
    tokens_BL = tokens_of(3, 6 * W)
    with torch.no_grad():
        out = model(tokens_BL)
    assert all((layer.weight_BGN == 0).any() for layer in out.addresses)
    assert difference(decode(model, tokens_BL, MIXED), out.logits_BLV) <= 1e-4


@pytest.mark.parametrize("calls", [ONE_BY_ONE, IN_CHUNKS], ids=["one by one", "chunks"])
@pytest.mark.parametrize(
    "memory",
    [
        None,
        chapters(MEMORY, num_routed=None),
        chapters(MEMORY, num_routed=None, mixing="per_chapter"),
        chapters(MEMORY, router=RouterConfig(segment_tokens=1, window_tokens=1)),
        chapters(MEMORY, router=RouterConfig(segment_tokens=50, window_tokens=2)),
        chapters(MEMORY, num_shared=0, router=RouterConfig(segment_tokens=W)),
        chapters(MEMORY, dim=8, num_heads=2, num_kv_heads=1, router=RouterConfig(segment_tokens=3)),
        chapters(MEMORY, layers="all", layers_per_bank=1, router=RouterConfig(segment_tokens=W)),
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
    config.memory.chapters.router = replace(config.memory.chapters.router, bias_rate=0.01)
    model, tokens_BL = lively(config).eval(), tokens_of(3, LENGTH)
    with torch.no_grad():
        unbiased_BLV = model(tokens_BL).logits_BLV
        for bias_C in model.buffers():
            bias_C.normal_(generator=torch.Generator().manual_seed(0))
        pool_BL = prompt_mask() if scope == "sequence" else None
        expected_BLV = model(tokens_BL, pool_BL=pool_BL).logits_BLV
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
    """Row 1 ends in the middle of a segment; those that stay change order."""
    model, tokens_BL = lively(with_router(scope)).eval(), tokens_of(3, LENGTH)
    whole_BLV = decode(model, tokens_BL, [PROMPTS, (2, 2, 2), *[(1, 1, 1)] * 6], policy=policy)
    cache = model.new_cache(3, LENGTH + 9, policy=policy)
    real_BL = torch.arange(max(PROMPTS)) < torch.tensor(PROMPTS)[:, None]
    with torch.no_grad():
        model(tokens_BL[:, : max(PROMPTS)], real_BL=real_BL, cache=cache)
        chunk_BL = torch.stack([row[n : n + 2] for row, n in zip(tokens_BL, PROMPTS, strict=True)])
        model(chunk_BL, cache=cache)
        cache.keep_rows(torch.tensor([2, 0]))
        for step in range(6):
            positions = [(b, PROMPTS[b] + 2 + step) for b in (2, 0)]
            new_BL = torch.stack([tokens_BL[b, position][None] for b, position in positions])
            logits_BV = model(new_BL, cache=cache).logits_BLV[:, 0]
            for row_V, (b, position) in zip(logits_BV, positions, strict=True):
                assert (row_V - whole_BLV[b, position]).abs().max() <= 1e-4


@pytest.mark.parametrize(("scope", "mixing"), list(itertools.product(CAUSAL, MIXINGS)))
def test_rows_kept_take_their_copied_chapters_along(scope, mixing):
    """After some single tokens a row ends and another goes on twice, over a border of segments."""
    model = lively(with_router(scope, mixing=mixing)).double().eval()
    tokens_BL = tokens_of(3, LENGTH)
    with torch.no_grad():
        expected_BLV = model(tokens_BL).logits_BLV
        cache = model.new_cache(3, LENGTH)
        real_BL = torch.arange(max(PROMPTS)) < torch.tensor(PROMPTS)[:, None]
        model(tokens_BL[:, : max(PROMPTS)], real_BL=real_BL, cache=cache)
        rows = [0, 1, 2]
        for step in range(3 * W - 2):
            if step == 3:
                rows = [2, 0, 2]
                cache.keep_rows(torch.tensor(rows))
            positions = [PROMPTS[b] + step for b in rows]
            logits_BV = model(tokens_BL[rows, positions][:, None], cache=cache).logits_BLV[:, 0]
            assert (logits_BV - expected_BLV[rows, positions]).abs().max() <= 1e-11
