"""Sequence routing, which cannot decode as it was trained: what its policies do instead.

What would break for a user: an answer routed on something else than the policy says.
"""

from __future__ import annotations

import itertools

import pytest
import torch

from moc.model import ModelConfig, RouterConfig, build_model
from tests.support.decoding import IN_CHUNKS, LENGTH, ONE_BY_ONE, decode, difference, prompt_mask
from tests.support.oracle import naive_logits, unfused
from tests.support.small_models import (
    MIXINGS,
    ROUTER_INPUTS,
    chapters,
    lively,
    tokens_of,
    with_router,
)


@pytest.mark.parametrize(
    ("mixing", "router_input", "variant"), list(itertools.product(MIXINGS, ROUTER_INPUTS, "AB"))
)
def test_policy_prompt_freezes_the_routing_of_the_prompt(mixing, router_input, variant):
    """The same as a pass over the whole text in which routing may pool the prompt alone."""
    config = with_router("sequence", router_input=router_input, mixing=mixing, variant=variant)
    model, tokens_BL = lively(config).eval(), tokens_of(3, LENGTH)
    with torch.no_grad():
        frozen_BLV = model(tokens_BL, pool_BL=prompt_mask()).logits_BLV
        whole_BLV = model(tokens_BL).logits_BLV
    assert (frozen_BLV - whole_BLV).abs().max() > 0.1
    for calls in (ONE_BY_ONE, IN_CHUNKS):
        found_BLV = decode(model, tokens_BL, calls, policy="prompt")
        assert difference(found_BLV, frozen_BLV) <= 1e-4


@pytest.mark.parametrize("window_tokens", [None, 1, 4])
@pytest.mark.parametrize(
    ("mixing", "router_input", "variant"),
    [("joint", "block_input", "A"), ("per_chapter", "post_attention", "B"),
     ("log_bias", "block_input", "B"), ("joint", "post_attention", "A")],
)  # fmt: skip
def test_policy_running_pools_what_there_is(mixing, router_input, variant, window_tokens):
    """Against loops in float64: a prompt's positions see the prompt, later ones all up to
    themselves, or the last ``window_tokens`` of it. Earlier positions keep what they read."""
    config = ModelConfig(
        vocab_size=11,
        num_layers=2,
        dim=8,
        num_heads=2,
        num_kv_heads=1,
        mlp_dim=10,
        memory=chapters(
            num_chapters=5,
            num_routed=2,
            chapter_tokens=3,
            layers="all",
            mixing=mixing,
            variant=variant,
            router=RouterConfig(scope="sequence", input=router_input),
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
