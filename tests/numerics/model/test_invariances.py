"""What may change speed or memory, and nothing else: padding, recomputation, bfloat16, compiling.

What would break for a user: a score that depends on the batch it was computed in, a run that a
flag for speed has made another run.
"""

import shutil
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from moc.model.memory.bank import count_use
from moc.model.memory.chapters.router import balance_loss, z_loss
from tests.support.memory_layer import MemoryLayer
from tests.support.small_models import (
    DENSE,
    MEMORY,
    MIXINGS,
    ROUTER_INPUTS,
    ROUTERS,
    chapters,
    lively,
    tokens_of,
    with_router,
)

LENGTH = 14  # segments do not divide it


def one_layer(config):
    return replace(config, num_layers=1, memory=chapters(config.memory, layers="0"))


# padding and batches


@pytest.mark.parametrize("router_input", ROUTER_INPUTS)
@pytest.mark.parametrize("mixing", MIXINGS)
@pytest.mark.parametrize("scope", ROUTERS)
def test_scores_do_not_depend_on_padding(scope, mixing, router_input):
    """A request scored alone, in a batch with longer ones, or over other filler: the same."""
    model = lively(with_router(scope, router_input=router_input, mixing=mixing)).double()
    lengths, tokens_BL = (3, 12, 7, 1), tokens_of(4, LENGTH)
    kept_BL = torch.arange(LENGTH)[None] < torch.tensor(lengths)[:, None]
    refilled_BL = tokens_BL.masked_fill(~kept_BL, 36)
    batched = [model(x_BL, pool_BL=kept_BL) for x_BL in (tokens_BL, refilled_BL)]
    unmarked = model(tokens_BL)
    if scope == "sequence":  # marking padding matters to it alone
        assert (unmarked.logits_BLV - batched[0].logits_BLV)[0, :3].abs().max() > 1e-3
    else:
        batched.append(unmarked)
    for b, length in enumerate(lengths):
        alone = model(tokens_BL[b : b + 1, :length])
        for out in batched:
            torch.testing.assert_close(
                out.logits_BLV[b, :length], alone.logits_BLV[0], rtol=1e-9, atol=1e-9
            )
            for together, single in zip(out.addresses, alone.addresses, strict=True):
                num_groups = single.index_BGN.shape[1]
                assert torch.equal(together.index_BGN[b, :num_groups], single.index_BGN[0])


@pytest.mark.parametrize("scope", ROUTERS)
def test_scores_do_not_depend_on_the_batch_size(scope):
    """Eight texts together choose other shapes, and the other way of routed attention, than one."""
    model, tokens_BL = lively(with_router(scope)).double(), tokens_of(8, LENGTH)
    together_BLV = model(tokens_BL).logits_BLV
    for b in range(8):
        alone_LV = model(tokens_BL[b : b + 1]).logits_BLV[0]
        torch.testing.assert_close(together_BLV[b], alone_LV, rtol=1e-9, atol=1e-9)


def test_an_answer_that_is_not_pooled_does_not_steer():
    """Sequence routing on the context: the answer's tokens may be any, the context reads the same;
    and the answer is read with the context's chapters."""
    model, tokens_BL = lively(with_router("sequence")).double(), tokens_of(2, LENGTH)
    context_BL = (torch.arange(LENGTH) < 9).expand(2, -1)
    other_BL = torch.where(context_BL, tokens_BL, (tokens_BL + 1) % 37)
    one, two = (model(x_BL, pool_BL=context_BL) for x_BL in (tokens_BL, other_BL))
    alone = model(tokens_BL[:, :9])
    for out in (one, two):
        torch.testing.assert_close(out.logits_BLV[:, :9], alone.logits_BLV, rtol=1e-9, atol=1e-9)
        for marked, short in zip(out.addresses, alone.addresses, strict=True):
            assert torch.equal(marked.index_BGN, short.index_BGN)
    assert (one.logits_BLV - two.logits_BLV)[:, 9:].abs().max() > 0.1


# recomputation, bfloat16, compiling


def loss_and_gradients(model, tokens_BL):
    model.zero_grad()
    out = model(tokens_BL)
    loss = F.cross_entropy(out.logits_BLV[:, :-1].flatten(0, 1), tokens_BL[:, 1:].flatten())
    for routing in out.addresses:
        probs_XC, logits_XC = routing.probs_BGC.flatten(0, 1), routing.logits_BGC.flatten(0, 1)
        picks_C = count_use(routing.index_BGN, 9, 1)
        loss = loss + balance_loss(probs_XC, picks_C) + 0.1 * z_loss(logits_XC)
    loss.backward()
    return out, {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("variant", ["A", "B"])
@pytest.mark.parametrize("scope", ROUTERS)
def test_activation_checkpointing_changes_nothing(scope, variant):
    config = with_router(scope, variant=variant)
    model, tokens_BL = lively(config), tokens_of(2, LENGTH)
    recomputing = lively(replace(config, activation_checkpointing=True))
    out, gradients = loss_and_gradients(model, tokens_BL)
    again, gradients_again = loss_and_gradients(recomputing, tokens_BL)
    assert torch.equal(out.logits_BLV, again.logits_BLV)
    assert all(torch.equal(gradients[name], gradients_again[name]) for name in gradients)
    for one, two in zip(out.addresses, again.addresses, strict=True):
        for name in ("index_BGN", "weight_BGN", "logits_BGC", "probs_BGC"):
            assert torch.equal(getattr(one, name), getattr(two, name))


@pytest.mark.parametrize("mixing", MIXINGS)
@pytest.mark.parametrize("scope", ROUTERS)
def test_bf16_autocast_stays_close_and_routes_in_float32(scope, mixing):
    """One memory layer: what a router picks on bfloat16's account moves the layers above it."""
    model = lively(with_router(scope, mixing=mixing, layers="0"))
    tokens_BL = tokens_of(2, LENGTH)
    expected, _ = loss_and_gradients(model, tokens_BL)
    with torch.autocast("cpu", torch.bfloat16):
        out, gradients = loss_and_gradients(model, tokens_BL)
    (routing,), (expected_routing,) = out.addresses, expected.addresses
    assert {t.dtype for t in (routing.logits_BGC, routing.probs_BGC, routing.weight_BGN)} == {
        torch.float32
    }
    # the first router sees the embedding itself: no bfloat16 on its way
    torch.testing.assert_close(routing.logits_BGC, expected_routing.logits_BGC, rtol=0, atol=1e-6)
    assert all(grad.isfinite().all() and grad.dtype == torch.float32 for grad in gradients.values())
    error = (out.logits_BLV.float() - expected.logits_BLV).square().mean().sqrt()
    assert error < 0.05 * expected.logits_BLV.square().mean().sqrt()


@pytest.mark.parametrize("scope", ROUTERS)
def test_compiled_model_is_one_graph_and_equals_eager(scope):
    """Forward and backward; aot_eager captures as the default backend does, without a compiler."""
    config = one_layer(with_router(scope))
    config.memory.chapters.router = replace(config.memory.chapters.router, bias_rate=0.01)
    model, tokens_BL = lively(config), tokens_of(2, 10)
    out, gradients = loss_and_gradients(model, tokens_BL)
    torch.compiler.reset()
    model.compile(fullgraph=True, backend="aot_eager")
    again, gradients_again = loss_and_gradients(model, tokens_BL)
    torch.testing.assert_close(again.logits_BLV, out.logits_BLV, rtol=1e-4, atol=1e-5)
    assert torch.equal(again.addresses[0].index_BGN, out.addresses[0].index_BGN)
    torch.testing.assert_close(gradients_again, gradients, rtol=1e-3, atol=1e-5)


@pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++", "c++"))), reason="needs a C++ compiler"
)
@pytest.mark.parametrize("scope", ["window", "token"])  # the two ways of routed attention
def test_compiled_kernels_of_the_memory_read_equal_eager(scope):
    config = one_layer(with_router(scope))
    block, read = lively(config).blocks[0], MemoryLayer(config)
    read.memory = block.memory
    generator = torch.Generator().manual_seed(0)
    x_BLD, upstream_BLD = (torch.randn(2, 10, 32, generator=generator) for _ in range(2))
    bank_CTM = torch.randn(9, 4, 32, generator=generator)

    def run():
        read.zero_grad()
        inputs = [tensor.clone().requires_grad_() for tensor in (x_BLD, bank_CTM)]
        out_BLD, routing = read(inputs[0], *inputs)
        (out_BLD * upstream_BLD).sum().backward()
        weights = [parameter.grad for parameter in read.parameters()]
        return [out_BLD, routing.weight_BGN, *(tensor.grad for tensor in inputs), *weights]

    expected = run()
    torch.compiler.reset()
    read.compile(fullgraph=True)
    torch.testing.assert_close(run(), expected, rtol=1e-3, atol=1e-5)


def test_routing_every_chapter_does_not_depend_on_padding():
    model = lively(replace(DENSE, memory=chapters(MEMORY, num_routed=None))).double()
    tokens_BL = tokens_of(2, LENGTH)
    alone_LV = model(tokens_BL[:1, :5]).logits_BLV[0]
    torch.testing.assert_close(model(tokens_BL).logits_BLV[0, :5], alone_LV, rtol=1e-9, atol=1e-9)
