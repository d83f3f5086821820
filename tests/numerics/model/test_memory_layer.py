"""The memory layer against the published definition, written out as loops in float64.

What would break for a user: a model that trains, but is not the one that the paper, the report and
the FLOP counts speak of; a segment that reads what it should not have seen yet.
"""

import itertools
from dataclasses import replace

import pytest
import torch

from moc.model import ModelConfig, RouterConfig, build_model
from tests.support.memory_layer import MemoryLayer
from tests.support.oracle import naive_choice, naive_logits, naive_read, sees_of, unfused
from tests.support.small_models import MIXINGS, ROUTER_INPUTS, chapters

DIM, NUM_CHAPTERS, CHAPTER_TOKENS = 8, 5, 3
LENGTHS = (7, 5)  # segments of 3 positions divide neither
ROUTERS = {
    "sequence": RouterConfig(scope="sequence"),
    "segment": RouterConfig(segment_tokens=3),
    "window 1": RouterConfig(segment_tokens=3, window_tokens=1),
    "window 5": RouterConfig(segment_tokens=3, window_tokens=5),
    "token": RouterConfig(scope="token"),
}


def make_config(*, num_layers=1, **memory):
    defaults = {
        "num_chapters": NUM_CHAPTERS,
        "num_routed": 2,
        "chapter_tokens": CHAPTER_TOKENS,
        "layers": "all",
        "router": ROUTERS["segment"],
    }
    return ModelConfig(
        vocab_size=11,
        num_layers=num_layers,
        dim=DIM,
        num_heads=2,
        num_kv_heads=1,
        mlp_dim=10,
        memory=chapters(**defaults | memory),
    )


def randomise(module):
    """Large float64 weights: zero-initialised maps would hide everything."""
    module.double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in module.state_dict().values():  # a selection bias is a buffer
            tensor.normal_(0.0, 0.6, generator=generator)
    return module


def leaves(config, module):
    """Copies of all weights, every map by itself; a buffer has no gradient to compare."""
    weights = unfused(config, module.state_dict())
    copies = {name: tensor.detach().clone() for name, tensor in weights.items()}
    for name in unfused(config, dict(module.named_parameters())):
        copies[name].requires_grad_()
    return copies


def gradients(config, module):
    return unfused(config, {name: p.grad for name, p in module.named_parameters()})


def assert_same_gradients(found, expected):
    for name, gradient in expected.items():
        torch.testing.assert_close(
            found[name], gradient, rtol=1e-8, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}"
        )


def check_read(config, lengths=LENGTHS):
    """One memory layer, alone: its output, and the gradients of all that goes in."""
    read = randomise(MemoryLayer(config))
    generator = torch.Generator().manual_seed(1)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    shape = (len(lengths), max(lengths), DIM)
    inputs = {
        "x": draw(*shape),
        "router_input": draw(*shape),
        "bank": draw(NUM_CHAPTERS, CHAPTER_TOKENS, config.memory.chapters.dim or DIM),
    }
    upstream_BLD = draw(*shape)
    for tensor in inputs.values():
        tensor.requires_grad_()
    kept_BL = torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]
    # the causal scopes need not be told what is padding
    pool_BL = kept_BL if config.memory.chapters.router.scope == "sequence" else None
    out_BLD, routing = read(*inputs.values(), pool_BL=pool_BL)
    (out_BLD * upstream_BLD)[kept_BL].sum().backward()

    weights = leaves(config, read)
    copies = {name: tensor.detach().clone().requires_grad_() for name, tensor in inputs.items()}
    loss = 0.0
    for b, length in enumerate(lengths):
        rows = [list(copies[name][b, :length]) for name in ("x", "router_input")]
        sees = sees_of(config, length)
        naive_LD = torch.stack(naive_read(config, weights, "", *rows, copies["bank"], sees))
        torch.testing.assert_close(out_BLD[b, :length], naive_LD, rtol=1e-9, atol=1e-11)
        for t in range(length):
            choice = naive_choice(config, weights, "", [rows[1][s] for s in sees(t)])
            group = t // routing.group_tokens
            assert routing.index_BGN[b, group].tolist() == [c for c, _ in choice]
            weight_N = torch.stack([weight for _, weight in choice])
            torch.testing.assert_close(
                routing.weight_BGN[b, group], weight_N, rtol=1e-9, atol=1e-11
            )
        loss = loss + (naive_LD * upstream_BLD[b, :length]).sum()
    loss.backward()
    expected = {k: v.grad for k, v in (weights | copies).items() if v.grad is not None}
    assert {"x", "bank"} | {f"memory.read.{x}.weight" for x in ("q", "k", "v", "out")} <= set(
        expected
    )
    if config.memory.chapters.num_routed is not None:
        # one routed chapter has weight 1 among the routed, whatever the router says of it
        learns = float(expected["memory.address.router.linear.weight"].abs().max()) > 1e-6
        assert learns == (config.memory.chapters.num_routed > 1)
    found = gradients(config, read)
    found |= {name: tensor.grad for name, tensor in inputs.items()}
    assert_same_gradients(found, expected)


@pytest.mark.parametrize("num_routed", [1, 2, "rest"])
@pytest.mark.parametrize("num_shared", [0, 1, 2])
@pytest.mark.parametrize("mixing", MIXINGS)
@pytest.mark.parametrize("scope", ROUTERS)
def test_read_and_gradients_follow_the_definition(scope, mixing, num_shared, num_routed):
    if num_routed == "rest":
        num_routed = NUM_CHAPTERS - num_shared
    check_read(
        make_config(
            num_shared=num_shared, num_routed=num_routed, mixing=mixing, router=ROUTERS[scope]
        )
    )


@pytest.mark.parametrize("num_shared", [0, 2])
@pytest.mark.parametrize("mixing", MIXINGS)
def test_without_a_router_every_chapter_is_read(mixing, num_shared):
    check_read(make_config(num_shared=num_shared, num_routed=None, mixing=mixing))


@pytest.mark.parametrize("scope", ["segment", "window 5", "token"])
@pytest.mark.parametrize("lengths", [(1, 1), (3, 2), (6, 4)])
def test_sequences_may_end_anywhere(scope, lengths):
    """A single token, less than a segment, exactly one, exactly two."""
    check_read(make_config(router=ROUTERS[scope]), lengths)


@pytest.mark.parametrize(("segment_tokens", "window_tokens"), [(1, None), (1, 2), (9, None)])
def test_a_segment_may_be_one_position_or_longer_than_the_text(segment_tokens, window_tokens):
    router = RouterConfig(segment_tokens=segment_tokens, window_tokens=window_tokens)
    check_read(make_config(router=router))


@pytest.mark.parametrize("mixing", MIXINGS)
@pytest.mark.parametrize(
    ("dim", "num_heads", "num_kv_heads"), [(5, None, None), (None, 4, 2), (12, 4, 1), (3, 1, None)]
)
def test_memory_width_and_head_counts_may_differ_from_the_models(
    dim, num_heads, num_kv_heads, mixing
):
    check_read(make_config(dim=dim, num_heads=num_heads, num_kv_heads=num_kv_heads, mixing=mixing))


def test_routed_scale_moves_weight_from_shared_to_routed_chapters():
    check_read(make_config(routed_scale=0.3))


@pytest.mark.parametrize("scope", ROUTERS)
def test_a_selection_bias_changes_who_is_picked_and_no_weight(scope):
    """The oracle adds the bias to the ranking alone; here it must have changed some ranking."""
    config = make_config(router=replace(ROUTERS[scope], bias_rate=0.01))
    check_read(config)
    read = randomise(MemoryLayer(config))
    x_BLD = torch.randn(4, 9, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    router = read.memory.address.router
    biased = router(x_BLD, None)
    router.selection_bias.zero_()
    assert not torch.equal(router(x_BLD, None).index_BGN, biased.index_BGN)


SHARINGS = {  # layers_per_bank: the bank of each memory layer
    None: {0: 0, 1: 0, 3: 0},
    1: {0: 0, 1: 1, 3: 2},
    2: {0: 0, 1: 0, 3: 1},
}


def combinations():
    """Every scope, mixing, router input and variant; which layers share a bank takes turns, so that
    every scope and mixing meets all three."""
    axes = [list(enumerate(axis)) for axis in (ROUTERS, MIXINGS, ROUTER_INPUTS, "AB")]
    for chosen in itertools.product(*axes):
        turn = sum(i for i, _ in chosen) % len(SHARINGS)
        yield *(value for _, value in chosen), list(SHARINGS)[turn]


@pytest.mark.parametrize(
    ("scope", "mixing", "router_input", "variant", "layers_per_bank"), list(combinations())
)
def test_whole_model_and_gradients_follow_the_definition(
    scope, mixing, router_input, variant, layers_per_bank
):
    """Order of the block, input and reach of the router, and which layers share a bank."""
    config = make_config(
        num_layers=4,
        layers="0,1,3",
        variant=variant,
        layers_per_bank=layers_per_bank,
        mixing=mixing,
        router=replace(ROUTERS[scope], input=router_input),
    )
    bank_of_layer = SHARINGS[layers_per_bank]
    model = randomise(build_model(config))
    assert len(model.banks) == len(set(bank_of_layer.values()))
    generator = torch.Generator().manual_seed(2)
    tokens_BL = torch.randint(0, 11, (len(LENGTHS), max(LENGTHS)), generator=generator)
    upstream_BLV = torch.randn(*tokens_BL.shape, 11, generator=generator, dtype=torch.float64)
    kept_BL = torch.arange(max(LENGTHS))[None] < torch.tensor(LENGTHS)[:, None]
    logits_BLV = model(tokens_BL, pool_BL=kept_BL).logits_BLV
    (logits_BLV * upstream_BLV)[kept_BL].sum().backward()

    weights = leaves(config, model)
    loss = 0.0
    for b, length in enumerate(LENGTHS):
        tokens = tokens_BL[b, :length].tolist()
        naive_LV = naive_logits(config, weights, tokens, bank_of_layer=bank_of_layer)
        torch.testing.assert_close(logits_BLV[b, :length], naive_LV, rtol=1e-9, atol=1e-10)
        loss = loss + (naive_LV * upstream_BLV[b, :length]).sum()
    loss.backward()
    assert all(w.grad is not None for w in weights.values())
    expected = {name: w.grad for name, w in weights.items()}
    assert_same_gradients(gradients(config, model), expected)


def read_once(config, read, x_BLD, bank):
    weights = unfused(make_config(), dict(read.named_parameters()))
    rows = list(x_BLD[0])
    return torch.stack(naive_read(config, weights, "", rows, rows, bank, sees_of(config, 7)))


@pytest.mark.parametrize(
    "changes",
    [
        {"routed_scale": 2.4},
        {"router": RouterConfig(scope="sequence")},
        {"router": RouterConfig(segment_tokens=4)},
        {"router": RouterConfig(segment_tokens=3, window_tokens=6)},
        {"router": RouterConfig(scope="token")},
    ],
)
def test_the_oracle_notices_what_is_not_the_models(changes):
    """The comparison has teeth: another scale, scope, segment or window is no match."""
    config = make_config()
    read = randomise(MemoryLayer(config))
    generator = torch.Generator().manual_seed(4)
    x_BLD = torch.randn(1, 7, DIM, dtype=torch.float64, generator=generator)
    bank = torch.randn(NUM_CHAPTERS, CHAPTER_TOKENS, DIM, dtype=torch.float64, generator=generator)
    out_LD = read(x_BLD, x_BLD, bank)[0][0]
    same = read_once(config, read, x_BLD, bank)
    wrong = read_once(make_config(**changes), read, x_BLD, bank)
    assert (out_LD - same).abs().max() < 1e-10
    assert (out_LD - wrong).abs().max() > 1e-4
