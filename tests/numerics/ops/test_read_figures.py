"""Figures of what is read, against a loop over positions, heads and tokens in float64.

What would break for a user: a report that calls a read sharp which is flat, or the reverse.
"""

import math

import pytest
import torch

from moc.ops import figures, read_figures
from moc.ops.mixing import MIXINGS

torch.set_num_threads(1)
BATCH, LENGTH, NUM_HEADS, NUM_KV_HEADS, HEAD_DIM, NUM_DISTINCT, TOKENS = 2, 7, 4, 2, 3, 6, 2


def make_inputs(num_groups, total_weight=1.0):
    generator = torch.Generator().manual_seed(num_groups)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    picks = [
        torch.randperm(NUM_DISTINCT, generator=generator)[:3] for _ in range(BATCH * num_groups)
    ]
    row_BGN = torch.stack(picks).view(BATCH, num_groups, 3)
    q_BLHE = 2 * draw(BATCH, LENGTH, NUM_HEADS, HEAD_DIM)
    k_UTJE = draw(NUM_DISTINCT, TOKENS, NUM_KV_HEADS, HEAD_DIM)
    return q_BLHE, k_UTJE, row_BGN, total_weight * draw(*row_BGN.shape).softmax(-1)


def of_a_position(q_E, k_NTE, weight_N, num_shared, mixing):
    """The shared mass, and the effective number of tokens, by hand."""
    falls, mixed = [], []
    for n, w in enumerate(weight_N.tolist()):
        raws = [float(k_E @ q_E) / HEAD_DIM**0.5 for k_E in k_NTE[n]]
        exps = [math.exp(raw * w if mixing == "joint" else raw) for raw in raws]
        if mixing == "log_bias":
            exps = [w * x for x in exps]
        if mixing == "per_chapter":
            exps = [w * x / sum(exps) for x in exps]
        falls += [(n, x) for x in exps]
        mixed += [w * x if mixing in ("joint", "joint_normed") else x for x in exps]
    mass = sum(x for n, x in falls if n < num_shared) / sum(x for _, x in falls)
    shares = [x / sum(mixed) for x in mixed]
    return mass, math.exp(-sum(p * math.log(p) for p in shares))


def by_hand(q_BLHE, k_UTJE, row_BGN, weight_BGN, num_shared, mixing, group_tokens, groups):
    """Means over the positions of the ``groups``, as (sequence, group)."""
    masses, numbers = [], []
    for b, group in groups:
        for position in range(group * group_tokens, min((group + 1) * group_tokens, LENGTH)):
            for head in range(NUM_HEADS):
                k_NTE = k_UTJE[row_BGN[b, group], :, head // (NUM_HEADS // NUM_KV_HEADS)]
                mass, number = of_a_position(
                    q_BLHE[b, position, head], k_NTE, weight_BGN[b, group], num_shared, mixing
                )
                masses.append(mass)
                numbers.append(number)
    return sum(masses) / len(masses), sum(numbers) / len(numbers)


@pytest.mark.parametrize("total_weight", [1.0, 3.5])
@pytest.mark.parametrize("group_tokens", [7, 4, 3, 1, 9])
@pytest.mark.parametrize("num_shared", [0, 1, 3])
@pytest.mark.parametrize("mixing", MIXINGS)
def test_figures_are_the_loops(mixing, num_shared, group_tokens, total_weight):
    num_groups = -(-LENGTH // group_tokens)
    inputs = make_inputs(num_groups, total_weight)
    found = read_figures(*inputs, num_shared, mixing=mixing, group_tokens=group_tokens)
    groups = [(b, group) for b in range(BATCH) for group in range(num_groups)]
    mass, number = by_hand(*inputs, num_shared, mixing, group_tokens, groups)
    assert found.shared_mass.dtype == found.effective_tokens.dtype == torch.float32
    assert found.shared_mass.item() == pytest.approx(mass, abs=1e-6)
    assert found.effective_tokens.item() == pytest.approx(number, rel=1e-5)


def test_some_groups_stand_for_all(monkeypatch):
    """At most so many, evenly spaced."""
    monkeypatch.setattr(figures, "MEASURED_GROUPS", 5)
    inputs = make_inputs(LENGTH)
    found = read_figures(*inputs, 1, mixing="joint", group_tokens=1)
    groups = [(0, 0), (0, 3), (0, 6), (1, 2), (1, 5)]  # every third of 14
    mass, number = by_hand(*inputs, 1, "joint", 1, groups)
    assert found.shared_mass.item() == pytest.approx(mass, abs=1e-6)
    assert found.effective_tokens.item() == pytest.approx(number, rel=1e-5)


@pytest.mark.parametrize("mixing", MIXINGS)
def test_even_and_one_hot_reads(mixing):
    q_BLHE, k_UTJE, row_BGN, _ = make_inputs(1)
    weight_BGN = torch.full(row_BGN.shape, 0.5, dtype=torch.float64)
    how = {"mixing": mixing, "group_tokens": LENGTH}
    flat = read_figures(0 * q_BLHE, k_UTJE, row_BGN, weight_BGN, 1, **how)
    assert flat.effective_tokens.item() == pytest.approx(3 * TOKENS, rel=1e-6)
    assert flat.shared_mass.item() == pytest.approx(1 / 3, rel=1e-6)
    # every chapter's first token wins in it, and the last chapter's among all
    k_UTJE = torch.zeros_like(k_UTJE)
    k_UTJE[:, 0] = torch.arange(1, 1 + NUM_DISTINCT)[:, None, None]
    sharp = read_figures(1e4 * torch.ones_like(q_BLHE), k_UTJE, row_BGN, weight_BGN, 1, **how)
    expected = 3 if mixing == "per_chapter" else 1  # a winner in each chapter
    assert sharp.effective_tokens.item() == pytest.approx(expected, rel=1e-6)


def test_autocast_rounds_no_score():
    inputs = [x.float() if x.is_floating_point() else x for x in make_inputs(1)]
    inputs[0] = 30 * inputs[0]
    how = {"mixing": "unweighted", "group_tokens": LENGTH}
    expected = read_figures(*inputs, 1, **how)
    with torch.autocast("cpu", torch.bfloat16):
        assert read_figures(*inputs, 1, **how) == expected
