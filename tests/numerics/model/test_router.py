"""Who is picked, how evenly, and the losses that see to it.

What would break for a user: a benchmark of even load that is not even, balancing that changes what
is read instead of who is, a loss that pulls the wrong way.
"""

import math
from dataclasses import replace
from typing import get_args

import pytest
import torch

from moc.model import RouterConfig, preset
from moc.model.config import Preset
from moc.model.memory.bank import count_use
from moc.model.memory.chapters.router import Router, balance_loss, pool_groups, z_loss
from tests.support.small_models import CAUSAL, ROUTERS, W, chapters, lively, tokens_of, with_router

DIM = 6


def make_router(scope, *, num_chapters=9, num_routed=3, num_shared=1, **changes):
    memory = chapters(
        num_chapters=num_chapters,
        num_routed=num_routed,
        num_shared=num_shared,
        router=replace(ROUTERS[scope], **changes),
    )
    router = Router(memory.chapters, DIM)
    with torch.no_grad():
        router.linear.weight.normal_(generator=torch.Generator().manual_seed(0))
        router.linear.bias.normal_(generator=torch.Generator().manual_seed(1))
    return router


def states(batch, length):
    return torch.randn(batch, length, DIM, generator=torch.Generator().manual_seed(2))


# groups


@pytest.mark.parametrize(
    ("scope", "length", "num_groups", "group_tokens"),
    [("sequence", 10, 1, 10), ("segment", 10, 3, W), ("window", 2, 1, 2), ("token", 10, 10, 1)],
)
def test_a_sequence_falls_into_groups(scope, length, num_groups, group_tokens):
    routing = make_router(scope)(states(2, length), None)
    assert routing.group_tokens == group_tokens
    for tensor in (routing.index_BGN, routing.weight_BGN):
        assert tensor.shape == (2, num_groups, 4)
    for tensor in (routing.logits_BGC, routing.probs_BGC):
        assert tensor.shape == (2, num_groups, 9)


@pytest.mark.parametrize("scope", ROUTERS)
def test_every_group_reads_the_shared_chapters_and_distinct_others(scope):
    routing = make_router(scope, num_shared=2, num_routed=4)(states(3, 13), None)
    for row_N in routing.index_BGN.flatten(0, 1).tolist():
        assert row_N[:2] == [0, 1] and min(row_N[2:]) >= 2 and len(set(row_N)) == 6
    torch.testing.assert_close(
        routing.weight_BGN.sum(-1), torch.ones_like(routing.weight_BGN[..., 0])
    )
    assert routing.probs_BGC[..., :2].abs().max() == 0


# selection bias


@pytest.mark.parametrize("scope", ROUTERS)
def test_a_selection_bias_moves_picks_and_leaves_their_weights_to_the_router(scope):
    """Raised by more than any logit, chapter 5 is picked by all, with the weight of its own logit;
    logits and probabilities, which the losses see, stay."""
    router, x_BLD = make_router(scope, bias_rate=0.1), states(3, 13)
    plain = router(x_BLD, None)
    router.selection_bias[5] = 100.0
    biased = router(x_BLD, None)
    assert not (plain.index_BGN == 5).any(-1).all()
    assert (biased.index_BGN[..., 1] == 5).all()
    assert torch.equal(biased.logits_BGC, plain.logits_BGC)
    assert torch.equal(biased.probs_BGC, plain.probs_BGC)
    picked_BGK = biased.logits_BGC.gather(-1, biased.index_BGN[..., 1:])
    expected_BGK = 2.5 / 3.5 * picked_BGK.double().softmax(-1)
    torch.testing.assert_close(biased.weight_BGN[..., 1:].double(), expected_BGK, rtol=0, atol=1e-6)


def test_a_bias_cannot_route_to_a_shared_chapter():
    router = make_router("token", bias_rate=0.1)
    router.selection_bias[0] = 1e6
    assert (router(states(2, 9), None).index_BGN[..., 1:] > 0).all()


def test_only_a_router_that_is_balanced_by_it_has_a_bias():
    """Checkpoints of other models stay as they are."""
    assert "selection_bias" not in make_router("segment").state_dict()
    bias_C = make_router("segment", bias_rate=0.1).state_dict()["selection_bias"]
    assert bias_C.shape == (9,) and not bias_C.any() and bias_C.dtype == torch.float32


@pytest.mark.parametrize("num_shared", [0, 1])
def test_a_pick_that_the_router_thinks_impossible_leaves_the_weights_finite(num_shared):
    """Its probability is 0 in float32, and so is the sum of all of them."""
    router = make_router("token", num_shared=num_shared, num_routed=2, bias_rate=0.1)
    with torch.no_grad():
        router.linear.weight.zero_()
        router.linear.bias.copy_(torch.arange(9.0))
        router.linear.bias[8] = 1000.0
    router.selection_bias[[3, 4]] = 1e4
    routing = router(states(1, 2), None)
    assert routing.index_BGN[..., num_shared:].tolist() == [[[4, 3]] * 2]
    share = 1 / (1 + math.exp(-1)) * (2.5 / 3.5 if num_shared else 1.0)
    assert routing.weight_BGN[0, 0, num_shared].item() == pytest.approx(share, rel=1e-6)


# chapters in turn


@pytest.mark.parametrize(
    ("batch", "num_groups", "num_routed", "num_routable"),
    [
        (8, 32, 64, 4096),  # paper's memory, segments of 32 in 1024 tokens
        (16, 16, 64, 4096),
        (64, 1, 64, 4096),
        (16, 8, 16, 512),
        (16, 32, 4, 1024),
        (2, 50, 3, 8),
        (4, 100, 7, 30),
        (3, 5, 8, 8),
    ],
)
def test_taking_turns_spreads_the_load(batch, num_groups, num_routed, num_routable):
    """Whatever the router says: the busiest chapter has half more than the mean at most."""
    router = make_router(
        "token",
        num_chapters=num_routable + 1,
        num_routed=num_routed,
    )
    router.takes_turns = True
    with torch.no_grad():
        router.linear.bias[1:3] = 50.0
    routing = router(states(batch, num_groups), None)
    counts_C = count_use(routing.index_BGN, num_routable + 1, 1)
    assert counts_C[0] == 0
    mean = batch * num_groups * num_routed / num_routable
    assert counts_C.max() <= 1.5 * mean and counts_C[1:].min() >= 0.5 * mean
    assert all(len(set(row)) == num_routed + 1 for row in routing.index_BGN.flatten(0, 1).tolist())


@pytest.mark.parametrize("scope", ROUTERS)
def test_a_whole_round_of_turns_is_perfectly_even(scope):
    """8 routed chapters, 3 per group: after 8 groups each was picked three times."""
    length = {"sequence": 1, "token": 8}.get(scope, 8 * W)
    batch = 8 if scope == "sequence" else 1
    router = make_router(scope)
    router.takes_turns = True
    routing = router(states(batch, length), None)
    assert count_use(routing.index_BGN, 9, 1).tolist() == [0, *[3] * 8]


def test_turns_keep_the_weights_of_the_router():
    router = make_router("token")
    router.takes_turns = True
    routing = router(states(2, 9), None)
    picked_BGK = routing.logits_BGC.gather(-1, routing.index_BGN[..., 1:]).double()
    expected_BGK = 2.5 / 3.5 * picked_BGK.softmax(-1)
    torch.testing.assert_close(
        routing.weight_BGN[..., 1:].double(), expected_BGK, rtol=0, atol=1e-6
    )


# the router's losses


def test_balance_loss_by_hand():
    """Two groups, three chapters, one pick each: C * sum f P = 3 * (1 * 0.6 + 0 + 1 * 0.15)."""
    probs_XC = torch.tensor([[0.7, 0.2, 0.1], [0.5, 0.3, 0.2]], requires_grad=True)
    loss = balance_loss(probs_XC, torch.tensor([2, 0, 0]))
    assert loss.item() == pytest.approx(3 * 1.0 * 0.6)
    loss = balance_loss(probs_XC, torch.tensor([1, 0, 1]))
    assert loss.item() == pytest.approx(3 * (0.5 * 0.6 + 0.5 * 0.15))
    loss.backward()  # the counts carry no gradient: d/dp = C * f_c / groups
    assert probs_XC.grad.tolist() == [pytest.approx([0.75, 0, 0.75])] * 2


def test_balanced_routing_has_the_least_balance_loss():
    """Uniform load and probabilities over C chapters give exactly K."""
    probs_XC = torch.full((10, 5), 0.2)
    assert balance_loss(probs_XC, torch.full((5,), 4)).item() == pytest.approx(2.0)


def test_z_loss_by_hand():
    logits_XC = torch.tensor([[0.0, math.log(3.0)], [1.0, 1.0]])
    expected = (math.log(4) ** 2 + (1 + math.log(2)) ** 2) / 2
    assert z_loss(logits_XC).item() == pytest.approx(expected)


@pytest.mark.parametrize("scope", [*CAUSAL, "sequence"])
def test_losses_and_load_of_a_batch_follow_their_definition(scope):
    model, num_chapters = lively(with_router(scope)), 9
    for routing in model(tokens_of(6, 14)).addresses:
        logits, probs, index = (
            tensor.flatten(0, 1).tolist()
            for tensor in (routing.logits_BGC, routing.probs_BGC, routing.index_BGN)
        )
        num_groups = len(index)
        assert num_groups == 6 * {"sequence": 1, "token": 14}.get(scope, 4)
        balance, squares = 0.0, 0.0
        for c in range(num_chapters):
            picked = sum(c in row[1:] for row in index) / num_groups
            balance += picked * sum(row[c] for row in probs) / num_groups
        for row in logits:
            squares += math.log(sum(map(math.exp, row))) ** 2
        picks_C = count_use(routing.index_BGN, num_chapters, 1)
        flat = routing.probs_BGC.flatten(0, 1), routing.logits_BGC.flatten(0, 1)
        found = balance_loss(flat[0], picks_C).item(), z_loss(flat[1]).item()
        assert found == pytest.approx((num_chapters * balance, squares / num_groups), rel=1e-5)
        assert picks_C[0] == 0  # the shared chapter is read, never picked
        assert (picks_C / num_groups).sum().item() == pytest.approx(3)


@pytest.mark.parametrize("balance_over", ["routed", "all"])
@pytest.mark.parametrize("scope", [*CAUSAL, "sequence"])
def test_whose_probability_the_balance_loss_takes(scope, balance_over):
    """``all``: of the softmax over shared chapters too, as published: to raise a shared logit then
    shrinks the loss. ``routed``: renormalised over those that can be picked."""
    router = make_router(scope, num_shared=2, balance_over=balance_over).double()
    routing = router(states(4, 13).double(), None)
    picks_C = count_use(routing.index_BGN, 9, 2).double()
    loss = balance_loss(routing.probs_BGC.flatten(0, 1), picks_C)
    loss.backward()
    logits, index = (x.flatten(0, 1).tolist() for x in (routing.logits_BGC, routing.index_BGN))
    expected = 0.0
    for c in range(2, 9):
        mean = 0.0
        for row in logits:
            among = row if balance_over == "all" else row[2:]
            mean += math.exp(row[c]) / sum(map(math.exp, among)) / len(logits)
        expected += 9 * mean * sum(c in row[2:] for row in index) / len(index)
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    of_shared = router.linear.bias.grad[:2]
    assert (of_shared < 0).all() if balance_over == "all" else not of_shared.any()


def test_only_the_published_preset_balances_over_shared_chapters_too():
    found = {name: preset(name).memory.chapters.router for name in get_args(Preset)}
    assert {name for name, router in found.items() if router.balance_over == "all"} == {"paper"}


@pytest.mark.parametrize("scope", [*CAUSAL, "sequence"])
def test_shared_mass_is_measured_on_request(scope):
    model = lively(with_router(scope, mixing="per_chapter"))
    tokens_BL = tokens_of(2, 14)
    assert all(routing.health == {} for routing in model(tokens_BL).addresses)
    out = model(tokens_BL, measure=True)
    # the shared chapter weighs 1 against routed_scale times weights that sum to 1
    assert [routing.health["shared_mass"].item() for routing in out.addresses] == [
        pytest.approx(1 / 3.5)
    ] * 2


def test_a_window_far_into_a_text_is_pooled_as_exactly_as_the_first():
    """Differences of float32 running sums would lose three digits here, and decoding agreement."""
    generator = torch.Generator().manual_seed(0)
    x_BLD = 3 + torch.randn(1, 6000, 4, generator=generator)
    config = RouterConfig(scope="segment", segment_tokens=7, window_tokens=3)
    pooled_BGD = pool_groups(x_BLD, None, config)
    assert pooled_BGD.dtype == torch.float32
    for group, first in enumerate(range(0, 6000, 7)):
        expected = x_BLD[0, max(0, first - 2) : first + 1].double().mean(0)
        torch.testing.assert_close(pooled_BGD[0, group].double(), expected, rtol=0, atol=1e-6)
