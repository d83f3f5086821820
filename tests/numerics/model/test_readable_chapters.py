"""Settings that make chapters readable, against a loop over positions, heads and tokens in float64.

B batch, L length, D model dim, H heads, E head dim, C chapters, T tokens of a chapter.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import Tensor

from moc.model import ModelConfig, RouterConfig, build_memory
from moc.model.memory.bank import BankRows
from moc.model.memory.seam import Context
from tests.support.small_models import DENSE, chapters, lively, tokens_of

B, L, W, C, S, K, T = 2, 10, 4, 9, 1, 3, 4
EPS = 1e-5
SETTINGS = [
    {"normalise": normalise, "qk_norm": qk_norm, "gated": gated}
    for normalise, qk_norm, gated in product(("joint", "none"), (False, True), (False, True))
]


def config_of(scope: str, **settings: object) -> ModelConfig:
    memory = chapters(
        num_chapters=C,
        num_shared=S,
        num_routed=K,
        chapter_tokens=T,
        layers="0",
        num_kv_heads=2,
        router=RouterConfig(scope=scope, segment_tokens=W),  # type: ignore[arg-type]
        **settings,
    )
    return replace(DENSE, memory=memory)


def rms(x: Tensor) -> Tensor:
    return x / (x.square().mean() + EPS).sqrt()


def naive_read(
    x_BLD: Tensor, stream_BLD: Tensor, bank_CTM: Tensor, w: dict[str, Tensor], config: ModelConfig
) -> Tensor:
    assert config.memory is not None
    settings, scope = config.memory.chapters, config.memory.chapters.router.scope
    num_heads, num_kv_heads = config.num_heads, 2
    width = config.dim // num_heads
    of_k, of_v = w["read.kv.weight"].chunk(2)
    rows = []
    for b, t in product(range(B), range(L)):
        seen = stream_BLD[b, t] if scope == "token" else stream_BLD[b, : t // W * W + 1].mean(0)
        logits_C = w["address.router.linear.weight"] @ seen + w["address.router.linear.bias"]
        probs = logits_C[S:].softmax(0)
        best = sorted(range(C - S), key=lambda c: -float(probs[c].detach()))[:K]
        total = sum(probs[c] for c in best)
        weighted = [(c, torch.ones((), dtype=torch.float64)) for c in range(S)]
        for c in best:
            share = probs[c] if settings.normalise == "none" else probs[c] / total
            weighted.append((c + S, settings.routed_scale * share))
        if settings.normalise == "joint":
            everything = sum(weight for _, weight in weighted)
            weighted = [(c, weight / everything) for c, weight in weighted]
        query = w["read.q.weight"] @ x_BLD[b, t]
        out = []
        for head in range(num_heads):
            here = slice(head * width, (head + 1) * width)
            kv = head // (num_heads // num_kv_heads)
            of_kv = slice(kv * width, (kv + 1) * width)
            q = query[here]
            if settings.qk_norm:
                q = rms(q) * w["read.qk_norm.weight"][head]
            scores, values = [], []
            for c, weight in weighted:
                raw, own = [], []
                for token in bank_CTM[c]:
                    token = rms(token)
                    k, v = of_k[of_kv] @ token, of_v[of_kv] @ token
                    if settings.qk_norm:
                        k = rms(k)
                    score = q @ k / width**0.5
                    if settings.mixing == "joint" and not settings.qk_norm:
                        score = weight * score
                    if settings.mixing == "log_bias":
                        score = score + weight.log()
                    raw.append(score)
                    own.append(v if settings.mixing == "log_bias" else weight * v)
                raw_T = torch.stack(raw)
                scores.append(raw_T.softmax(0) if settings.mixing == "per_chapter" else raw_T)
                values += own
            share_I = torch.cat(scores)
            if settings.mixing != "per_chapter":
                share_I = share_I.softmax(0)
            out.append(share_I @ torch.stack(values))
        read = torch.cat(out)
        if settings.gated:
            gate = w["read.gate.weight"] @ x_BLD[b, t]
            read = read * gate * gate.sigmoid()
        rows.append(w["read.out.weight"] @ read)
    return torch.stack(rows).unflatten(0, (B, L))


@pytest.mark.parametrize("scope", ["segment", "token"])
@pytest.mark.parametrize("mixing", ["joint", "per_chapter", "log_bias"])
@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: "-".join(map(str, s.values())))
def test_reads_and_gradients_are_those_of_the_loop(scope, mixing, settings):
    config = config_of(scope, mixing=mixing, **settings)
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    layer = build_memory(config).build_layer().double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(drawn(*parameter.shape) * 0.4 + (parameter.ndim == 1))
    x_BLD, stream_BLD, grad_BLD = (drawn(B, L, config.dim) for _ in range(3))
    bank_CTM = drawn(C, T, config.dim)
    tokens_BL = torch.zeros(B, L, dtype=torch.long)
    leaves = [x_BLD, stream_BLD, bank_CTM]
    names, parameters = zip(*layer.named_parameters(), strict=True)

    ours = [leaf.clone().requires_grad_() for leaf in leaves]
    out_BLD, _ = layer(ours[0], Context(BankRows(ours[2]), tokens_BL, ours[1]))
    grads = torch.autograd.grad(out_BLD, [*ours, *parameters], grad_BLD)

    theirs = [leaf.clone().requires_grad_() for leaf in leaves]
    weights = [parameter.detach().clone().requires_grad_() for parameter in parameters]
    naive_BLD = naive_read(
        theirs[0], theirs[1], theirs[2], dict(zip(names, weights, strict=True)), config
    )
    expected = torch.autograd.grad(naive_BLD, [*theirs, *weights], grad_BLD)

    torch.testing.assert_close(out_BLD, naive_BLD, rtol=1e-9, atol=1e-9)
    for name, ours_grad, grad in zip(["x", "stream", "bank", *names], grads, expected, strict=True):
        assert torch.allclose(ours_grad, grad, rtol=1e-7, atol=1e-8), name


@pytest.mark.parametrize("normalise", ["joint", "none"])
def test_what_weights_sum_to(normalise):
    config = config_of("token", normalise=normalise)
    layer = build_memory(config).build_layer()
    x_BLD = torch.randn(B, L, config.dim)
    context = Context(BankRows(torch.randn(C, T, config.dim)), torch.zeros(B, L).long(), x_BLD)
    weight_BLN = layer.address(x_BLD, context).weight_BGN
    total_BL = weight_BLN.sum(-1)
    if normalise == "none":
        assert bool((total_BL < S + 2.5).all()) and bool((total_BL > S).all())
    else:
        torch.testing.assert_close(total_BL, torch.ones_like(total_BL))


@pytest.mark.parametrize("scope", ["segment", "token"])
@pytest.mark.parametrize(
    "settings",
    [
        {"normalise": "none", "gated": True},
        {"qk_norm": True},
        {"qk_norm": True, "normalise": "none"},
    ],
    ids=str,
)
def test_decoding_equals_one_pass_and_looks_at_no_later_token(scope, settings):
    model = lively(config_of(scope, layers_per_bank=None, **settings)).eval()
    tokens_BL = tokens_of(B, 24)
    with torch.no_grad():
        whole_BLV = model(tokens_BL).logits_BLV
        cache = model.new_cache(B, 24)
        pieces = [tokens_BL[:, :7], *tokens_BL[:, 7:].split(1, dim=1)]
        parts = [model(piece, cache=cache).logits_BLV for piece in pieces]
        torch.testing.assert_close(torch.cat(parts, 1), whole_BLV, rtol=1e-4, atol=1e-4)
        other_BL = tokens_BL.clone()
        other_BL[:, 13:] = tokens_of(B, 11, seed=1)
        assert torch.equal(model(other_BL).logits_BLV[:, :13], whole_BLV[:, :13])
