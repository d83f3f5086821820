"""Settings that leave a part of a memory out: a bank of one row, rows chosen by no content.

What would break for a user: a control that differs from its arm in more than it says, so that what
is left of an effect is another model's.
"""

import itertools
from dataclasses import replace

import pytest
import torch

from moc.model import is_causal, routing_scope
from moc.train.addresses import routers
from moc.train.bank_gradients import BankGradients
from tests.numerics.model.test_causality import CONTEXTS, LAST_SEEN, one_text_with_many_endings
from tests.support.decoding import IN_CHUNKS, MIXED, ONE_BY_ONE, decode, difference
from tests.support.small_models import MIXINGS, ROUTERS, W, lively, tokens_of, with_router

LENGTH = 3 * W + 2  # segments do not divide it
SHARINGS = {None: 1, 1: 2}  # layers_per_bank: how many banks


# a single row


def one_and_full(scope, *, seed=0, **memory):
    """A model with one row a bank, and one with banks full of that row; else the same weights."""
    config = with_router(scope, **memory)
    full = lively(config, seed).double()
    one = lively(replace(config, memory=replace(config.memory, rows="one")), seed).double()
    of_banks = {name for name, _ in one.named_parameters() if name.startswith("banks.")}
    others = {name: x for name, x in full.state_dict().items() if name not in of_banks}
    assert not one.load_state_dict(others, strict=False).unexpected_keys
    for bank, full_bank in zip(one.banks, full.banks, strict=True):
        assert bank.rows.shape == (1, *full_bank.rows.shape[1:])
        full_bank.rows.data.copy_(bank.rows.data.expand_as(full_bank.rows))
    return one, full


def through_slots(model, tokens_BL):
    """The banks' gradients by bank, (R, X), as training collects them."""
    slots, gradients = model.gradient_slots(*tokens_BL.shape), BankGradients(model)
    output = model(tokens_BL, slots=slots)
    output.logits_BLV.square().sum().backward()
    gradients.add(slots, output.addresses)
    rows = model.bank_rows()
    return [gradient.dense(len(rows[bank])) for bank, gradient in gradients.finish().items()]


@pytest.mark.parametrize("layers_per_bank", SHARINGS)
@pytest.mark.parametrize("mixing", MIXINGS)
@pytest.mark.parametrize("scope", ROUTERS)
def test_one_row_is_a_bank_whose_rows_are_all_alike(scope, mixing, layers_per_bank):
    """Forward, and backward: the row's gradient is the sum of theirs; other weights' are equal."""
    one, full = one_and_full(scope, mixing=mixing, layers_per_bank=layers_per_bank)
    assert len(one.banks) == SHARINGS[layers_per_bank]
    tokens_BL = tokens_of(3, LENGTH)
    logits = [model(tokens_BL).logits_BLV for model in (one, full)]
    torch.testing.assert_close(*logits, rtol=1e-10, atol=1e-10)
    for logits_BLV in logits:
        logits_BLV.square().sum().backward()
    theirs = dict(full.named_parameters())
    for name, parameter in one.named_parameters():
        expected = theirs[name].grad
        if name.startswith("banks."):
            assert (expected != 0).flatten(1).any(1).sum() > 3  # of several rows, then
            expected = expected.sum(0, keepdim=True)
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-9, atol=1e-9, msg=name)


@pytest.mark.parametrize("layers_per_bank", SHARINGS)
@pytest.mark.parametrize("scope", ROUTERS)
def test_slots_of_one_row_hold_the_sum_of_a_full_banks(scope, layers_per_bank):
    one, full = one_and_full(scope, layers_per_bank=layers_per_bank)
    tokens_BL = tokens_of(3, LENGTH)
    found, expected = through_slots(one, tokens_BL), through_slots(full, tokens_BL)
    assert len(found) == len(expected) == len(one.banks)
    for grad_1X, grad_RX in zip(found, expected, strict=True):
        assert grad_1X.any()
        torch.testing.assert_close(grad_1X, grad_RX.sum(0, keepdim=True), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("scope", ROUTERS)
def test_one_row_decodes_as_it_reads(scope):
    one, _ = one_and_full(scope)
    if scope == "sequence":
        pytest.skip("a learned choice of whole sequences is another after every token")
    tokens_BL = tokens_of(3, 40)
    expected_BLV = one(tokens_BL).logits_BLV
    for calls in (ONE_BY_ONE, MIXED, IN_CHUNKS):
        assert difference(decode(one, tokens_BL, calls), expected_BLV) < 1e-9


# rows chosen by no content


def random_model(scope, seed=0, **memory):
    return lively(with_router(scope, address="random", **memory), seed)


@pytest.mark.parametrize("num_shared", [0, 2])
@pytest.mark.parametrize("scope", ROUTERS)
def test_a_random_address_is_the_same_for_every_text_and_model(scope, num_shared):
    """By the token's id where every token chooses, else by the group's number: in every row of a
    batch, any layer, seed and length of text. Distinct in a group, shared chapters first."""
    model = random_model(scope, num_shared=num_shared)
    chosen = {}
    for other, tokens_BL in (
        (model, tokens_of(4, LENGTH)),
        (model, tokens_of(2, 2 * W + 1, seed=3)),
        (random_model(scope, seed=5, num_shared=num_shared), tokens_of(2, 3 * LENGTH, seed=4)),
    ):
        width = {"sequence": tokens_BL.shape[1], "token": 1}.get(scope, W)
        for address in other(tokens_BL).addresses:
            assert address.group_tokens == width
            for b, group in itertools.product(
                range(len(tokens_BL)), range(address.index_BGN.shape[1])
            ):
                key = int(tokens_BL[b, group]) if scope == "token" else group
                row_N = address.index_BGN[b, group].tolist()
                assert chosen.setdefault(key, row_N) == row_N
    assert len(chosen) == {"sequence": 1, "token": 37}.get(scope, -(-3 * LENGTH // W))
    for row_N in chosen.values():
        assert row_N[:num_shared] == list(range(num_shared))
        assert len(set(row_N)) == num_shared + 3 and num_shared <= min(row_N[num_shared:])
        assert max(row_N) < 9
    if scope != "sequence":  # keys do not all choose alike
        assert len({tuple(row_N) for row_N in chosen.values()}) > min(len(chosen), 8) // 2


def test_a_random_address_spreads_over_the_bank():
    """A hash with a pattern would be a choice."""
    model = lively(with_router("token", address="random", num_chapters=61, num_routed=6))
    for address in model(torch.arange(37)[None]).addresses:
        counts = address.index_BGN[..., 1:].flatten().bincount(minlength=61)[1:]
        assert counts.sum() == 37 * 6 and counts.max() <= 12  # the mean is 3.7
        assert (counts > 0).sum() > 50


@pytest.mark.parametrize("scope", ROUTERS)
def test_a_random_address_weighs_its_rows_alike_and_learns_nothing(scope):
    """No router, no loss of one; a shared chapter weighs 1 to the routed ones' 2.5 together."""
    model = random_model(scope)
    assert not routers(model) and model.kind.router is None
    assert not [name for name, _ in model.named_parameters() if "address" in name]
    plain = lively(with_router(scope))
    left_out = {name for name, _ in plain.named_parameters() if "address" in name}
    assert {name for name, _ in plain.named_parameters()} - left_out == {
        name for name, _ in model.named_parameters()
    }
    for address in model(tokens_of(2, LENGTH)).addresses:
        assert address.logits_BGC is None and address.probs_BGC is None
        expected_N = torch.tensor([1.0, *[2.5 / 3] * 3]) / 3.5
        torch.testing.assert_close(
            address.weight_BGN, expected_N.expand_as(address.weight_BGN), rtol=1e-6, atol=0
        )


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("mixing", MIXINGS)
@pytest.mark.parametrize("scope", ROUTERS)
def test_no_scope_leaks_where_no_content_chooses(scope, mixing, context):
    """Also whole sequences, whose learned router is the one that looks ahead."""
    config = with_router(scope, address="random", mixing=mixing)
    assert is_causal(config)
    assert routing_scope(config) == ("segment" if scope == "window" else scope)
    model, gradients = CONTEXTS[context](lively(config))
    with gradients:
        out = model(one_text_with_many_endings())
    change_BL = (out.logits_BLV[1:] - out.logits_BLV[:1]).detach().abs().amax(-1)
    for moved_L, t in zip(change_BL, LAST_SEEN, strict=True):
        assert moved_L[t + 1] > 0.1 and moved_L[: t + 1].max() <= 1e-5, t


@pytest.mark.parametrize("rows", ["all", "one"])
@pytest.mark.parametrize("scope", ROUTERS)
@torch.no_grad()
def test_a_random_address_decodes_as_it_reads(scope, rows):
    model = random_model(scope, rows=rows).double().eval()
    tokens_BL = tokens_of(3, 40)
    expected_BLV = model(tokens_BL).logits_BLV
    for calls in (ONE_BY_ONE, MIXED, IN_CHUNKS):
        assert difference(decode(model, tokens_BL, calls), expected_BLV) < 1e-9
