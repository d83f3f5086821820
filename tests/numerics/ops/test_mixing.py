"""A mixing is its formula: every way that says it supports one computes it, with gradients.

What would break for a user: a mode of one's own that trains on what a fast way made of it.
"""

from __future__ import annotations

from typing import get_args

import pytest
import torch

from moc.model import config as model_config
from moc.ops import fused, kept_attention, reference, routed_attention
from moc.ops.cpu import gathered, grouped
from moc.ops.mixing import MIXINGS, Mixing, Weighting

torch.set_num_threads(1)
BATCH, LENGTH, NUM_HEADS, HEAD_DIM, NUM_DISTINCT, TOKENS = 2, 7, 4, 3, 6, 2
WAYS = {"grouped": grouped, "gathered": gathered, "fused": fused, "reference": reference}

WEIGHT = MIXINGS["joint"].score_factor
LOG = MIXINGS["log_bias"].score_bias
SQUARE = Weighting("square", torch.square, lambda grad, w: 2 * grad * w)
EQUAL = Weighting("equal", lambda w: torch.full_like(w, 1 / 3), lambda grad, w: 0 * grad)
NEW = {  # and how: a, b, c by hand, and the ways that can
    "keys alone": (
        Mixing(score_factor=WEIGHT), (lambda w: w, lambda w: 0, lambda w: 1), {"fused"},
    ),
    "values alone": (
        Mixing(value_factor=WEIGHT),
        (lambda w: 1, lambda w: 0, lambda w: w),
        {"grouped", "gathered", "fused"},
    ),
    "two functions": (
        Mixing(score_factor=WEIGHT, score_bias=LOG, value_factor=SQUARE),
        (lambda w: w, lambda w: w.log(), lambda w: w * w),
        {"fused"},
    ),
    "squares": (
        Mixing(score_factor=SQUARE, value_factor=SQUARE),
        (lambda w: w * w, lambda w: 0, lambda w: w * w),
        {"grouped", "gathered", "fused"},
    ),
    "mean of chapters": (
        Mixing(value_factor=EQUAL, per_chapter=True),
        (lambda w: 1, lambda w: 0, lambda w: 1 / 3),
        {"grouped", "gathered", "fused"},
    ),
    "a temperature for each chapter": (
        Mixing(score_factor=WEIGHT, value_factor=WEIGHT, per_chapter=True),
        (lambda w: w, lambda w: 0, lambda w: w),
        set(),
    ),
}  # fmt: skip


def test_the_config_offers_those_that_there_are():
    """And what a layer makes of ``joint``: without a router, and of keys that are normalised."""
    made = {"unweighted", "joint_normed"}
    assert {*get_args(model_config.Mixing)} | made == MIXINGS.keys()


def make_inputs():
    generator = torch.Generator().manual_seed(1)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    row_BGN = torch.stack([torch.randperm(NUM_DISTINCT, generator=generator)[:3] for _ in "abcd"])
    row_BGN = row_BGN.view(BATCH, 2, 3)
    q_BLHE = draw(BATCH, LENGTH, NUM_HEADS, HEAD_DIM)
    k_UTJE, v_UTJE = (draw(NUM_DISTINCT, TOKENS, 2, HEAD_DIM) for _ in "kv")
    return (q_BLHE, k_UTJE, v_UTJE, draw(*row_BGN.shape).softmax(-1)), row_BGN, draw(*q_BLHE.shape)


def by_hand(q, k, v, row, weight, formula, per_chapter):
    """Groups of four positions; a loop over positions, heads and chapters."""
    a, b, c = formula
    out = torch.zeros_like(q)
    for i in range(BATCH):
        for t in range(LENGTH):
            w_N = weight[i, t // 4]
            for h in range(NUM_HEADS):
                scores, values = [], []
                for w, chapter in zip(w_N, row[i, t // 4], strict=True):
                    raw_T = k[chapter, :, h // 2] @ q[i, t, h] / HEAD_DIM**0.5
                    scores.append(a(w) * raw_T + b(w))
                    values.append(c(w) * v[chapter, :, h // 2])
                if per_chapter:
                    shares = [score_T.softmax(0) for score_T in scores]
                else:
                    shares = torch.cat(scores).softmax(0).split(TOKENS)
                out[i, t, h] = sum(p @ v_TE for p, v_TE in zip(shares, values, strict=True))
    return out


def gradients(function, tensors, upstream):
    tensors = [tensor.clone().requires_grad_() for tensor in tensors]
    out = function(*tensors)
    (out * upstream).sum().backward()
    # none, where nothing depends on it
    return out.detach(), [torch.zeros_like(x) if x.grad is None else x.grad for x in tensors]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", NEW)
def test_a_new_formula_needs_nothing_else(name, way, monkeypatch):
    mixing, formula, able = NEW[name]
    monkeypatch.setitem(MIXINGS, name, mixing)
    monkeypatch.setattr(grouped, "moves_queries", lambda *_: way == "grouped")
    taken = []
    for other in WAYS:
        if other != way and other != "reference":
            monkeypatch.setattr(WAYS[other], "supports", lambda *_: False)

        def attend(*arguments, other=other, attend=WAYS[other].attend, **how):
            taken.append(other)
            return attend(*arguments, **how)

        monkeypatch.setattr(WAYS[other], "attend", attend)
    tensors, row_BGN, upstream = make_inputs()
    found = gradients(
        lambda q, k, v, w: routed_attention(q, k, v, row_BGN, w, mixing=name, group_tokens=4),
        tensors,
        upstream,
    )
    expected = gradients(
        lambda q, k, v, w: by_hand(q, k, v, row_BGN, w, formula, mixing.per_chapter),
        tensors,
        upstream,
    )
    assert taken == [way if way in able else "reference"]
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", NEW)
def test_and_decodes_as_it_trains(name, monkeypatch):
    """Position 0 of every row, over copies that are kept."""
    monkeypatch.setitem(MIXINGS, name, NEW[name][0])
    (q, k, v, weight), row_BGN, _ = make_inputs()
    trained = routed_attention(q, k, v, row_BGN, weight, mixing=name, group_tokens=4)
    copies = (x[row_BGN[:, 0]].flatten(1, 2).transpose(1, 2) for x in (k, v))
    kept = kept_attention(q[:, 0], *copies, weight[:, 0], mixing=name, scale=HEAD_DIM**-0.5)
    torch.testing.assert_close(kept, trained[:, 0], rtol=1e-9, atol=1e-11)
