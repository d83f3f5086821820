"""Every way to read chapters in bfloat16, against the definition in float64.

What would break for a user: shares of the attention, and so what a router learns from, that are off
because scores or log-sum-exps were kept in 16 bits; mixed precision that crashes on one way alone.

Queries see the first numbers of a token only, and the others name its chapter, so that these
numbers of the output are the chapters' shares.

B batch, L length, H heads, U chapters, T tokens per chapter, N chapters read, E width of a token.
"""

import os
import subprocess
import sys

import pytest
import torch

from moc.ops import absorbed_attention, fused, kept_attention, reference, routed_attention
from moc.ops.cpu import bank, gathered, grouped
from moc.ops.mixing import MIXINGS
from moc.ops.triton import attention as triton_attention
from moc.ops.triton.attention import HAS_TRITON, INTERPRETED
from tests.support.oracle import naive_attention
from tests.support.triton_interpreter import bfloat16_as_on_a_gpu

torch.set_num_threads(1)
BATCH, LENGTH, NUM_HEADS, NUM_DISTINCT, TOKENS, NUM_READ, SEEN, WIDTH = 2, 8, 2, 6, 16, 4, 32, 40
NAMES = slice(SEEN, SEEN + NUM_DISTINCT)
RUNS_TRITON = HAS_TRITON and (torch.cuda.is_available() or INTERPRETED)
WAYS = {"triton": triton_attention, "grouped": grouped, "gathered": gathered, "fused": fused}
needs_kernels = pytest.mark.skipif(not RUNS_TRITON, reason="no GPU: a process of its own does it")
PATHS = [
    pytest.param("triton by chapter", marks=needs_kernels),
    pytest.param("triton by group", marks=needs_kernels),
    "grouped",
    "bank",
    "gathered",
    "fused",
    "reference",
    "kept",
]


@pytest.mark.skipif(RUNS_TRITON or not HAS_TRITON, reason="no Triton, or the tests run right here")
def test_kernels_in_the_interpreter():
    child = subprocess.run(
        [sys.executable, "-m", "pytest", __file__, "-k", "triton"],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert child.returncode == 0, child.stdout + child.stderr


@pytest.fixture(params=PATHS)
def path(request, monkeypatch):
    """That one alone is taken."""
    name = request.param
    for way, module in WAYS.items():
        if way == "triton":  # in the interpreter it would not offer bfloat16
            monkeypatch.setattr(module, "supports", lambda *_: name.startswith("triton"))
        elif way != name:
            monkeypatch.setattr(module, "supports", lambda *_: False)
        else:  # and no falling back
            monkeypatch.setattr(reference, "attend", None)
    for module in (grouped, bank):
        monkeypatch.setattr(module, "moves_queries", lambda *_: True)
    monkeypatch.setattr(triton_attention, "goes_by_chapter", lambda *_: name.endswith("chapter"))
    if name.startswith("triton") and INTERPRETED:
        bfloat16_as_on_a_gpu(monkeypatch)
    mixing = MIXINGS[request.getfixturevalue("mixing")]
    if name == "gathered" and not gathered.supports(torch.empty(0), mixing):
        pytest.skip("it leaves this mixing to others")
    return name


def make_inputs(query_scale):
    """Queries (B, L, H, E) and tokens (U, T, E), all numbers of bfloat16, in float32; the chapters
    of every position (B, L, N), and weights that sum to 3.5."""
    generator = torch.Generator().manual_seed(1)

    def draw(*shape):
        return torch.randn(shape, generator=generator)

    q_BLHE = torch.zeros(BATCH, LENGTH, NUM_HEADS, WIDTH)
    q_BLHE[..., :SEEN] = query_scale * draw(BATCH, LENGTH, NUM_HEADS, SEEN)
    token_UTE = torch.zeros(NUM_DISTINCT, TOKENS, WIDTH)
    token_UTE[..., :SEEN] = draw(NUM_DISTINCT, TOKENS, SEEN)
    token_UTE[..., NAMES] = torch.eye(NUM_DISTINCT)[:, None]
    picks = [
        torch.randperm(NUM_DISTINCT, generator=generator)[:NUM_READ] for _ in range(BATCH * LENGTH)
    ]
    row_BLN = torch.stack(picks).view(BATCH, LENGTH, NUM_READ)
    weight_BLN = 3.5 * draw(BATCH, LENGTH, NUM_READ).softmax(-1)
    return q_BLHE.bfloat16().float(), token_UTE.bfloat16().float(), row_BLN, weight_BLN


def read(path, q_BLHE, token_UTE, row_BLN, weight_BLN, mixing):
    """Every position a group: (B, L, H, E)."""
    scale, how = WIDTH**-0.5, {"mixing": mixing, "group_tokens": 1}
    if path == "bank":
        chapter_U = torch.arange(NUM_DISTINCT)
        slot = token_UTE if token_UTE.requires_grad else None  # the gradient is the slot's
        arguments = q_BLHE, token_UTE.detach(), chapter_U, row_BLN, weight_BLN
        return absorbed_attention(*arguments, scale=scale, norm_eps=None, slot_UTM=slot, **how)
    if path == "kept":
        copies = token_UTE.to(q_BLHE.dtype)[row_BLN.flatten(0, 1)].flatten(1, 2)[:, None]
        q_XHE, weight_XN = q_BLHE.flatten(0, 1), weight_BLN.flatten(0, 1)
        out_XHE = kept_attention(q_XHE, copies, copies, weight_XN, mixing=mixing, scale=scale)
        return out_XHE.view(q_BLHE.shape)
    token_UT1E = token_UTE[:, :, None]
    return routed_attention(q_BLHE, token_UT1E, token_UT1E, row_BLN, weight_BLN, **how)


def definition(q_BLHE, token_UTE, row_BLN, weight_BLN, mixing):
    token_UT1E = token_UTE[:, :, None]
    arguments = q_BLHE, token_UT1E, token_UT1E, row_BLN, weight_BLN
    return naive_attention(*arguments, mixing=mixing, group_tokens=1)


def exactly(q_BLHE, token_UTE, row_BLN, weight_BLN, mixing):
    return definition(q_BLHE.double(), token_UTE.double(), row_BLN, weight_BLN.double(), mixing)


def device_of(path):
    return "cuda" if path.startswith("triton") and torch.cuda.is_available() else "cpu"


def worst_share(path, inputs, mixing):
    """The largest error of the share that a chapter has of a position's attention."""
    q_BLHE, token_UTE, row_BLN, weight_BLN = (x.to(device_of(path)) for x in inputs)
    arguments = q_BLHE.bfloat16(), token_UTE.bfloat16(), row_BLN, weight_BLN
    out_BLHE = read(path, *arguments, mixing).cpu()
    assert out_BLHE.dtype == torch.bfloat16
    error_BLHU = (out_BLHE - exactly(*inputs, mixing))[..., NAMES]
    error_BLHN = error_BLHU.gather(-1, inputs[2][:, :, None].expand(-1, -1, NUM_HEADS, -1))
    if MIXINGS[mixing].value_factor:  # values come with their weights
        error_BLHN = error_BLHN / inputs[3][:, :, None]
    return error_BLHN.abs().max().item()


@pytest.mark.parametrize("query_scale", [1, 8, 30])
@pytest.mark.parametrize("mixing", MIXINGS)
def test_shares_of_chapters_are_off_by_a_hundredth_at_most(path, mixing, query_scale):
    assert worst_share(path, make_inputs(query_scale), mixing) < 0.011


@pytest.mark.parametrize("mixing", MIXINGS)
def test_copies_for_a_gpu_are_rounded_once(mixing, monkeypatch):
    """Weighted keys of 16 bits, for want of a fused kernel that takes others: its stated bound."""
    for way in ("grouped", "gathered"):
        monkeypatch.setattr(WAYS[way], "supports", lambda *_: False)
    monkeypatch.setattr(fused, "_copied_dtype", lambda q_BLHE: q_BLHE.dtype)
    assert worst_share("fused", make_inputs(30), mixing) < 0.03


def run(function, inputs, mixing):
    """Output and gradients by name; leaves keep their dtype."""
    q_BLHE, token_UTE, row_BLN, weight_BLN = inputs
    leaves = {"q": q_BLHE, "tokens": token_UTE, "weight": weight_BLN}
    leaves = {name: leaf.clone().requires_grad_() for name, leaf in leaves.items()}
    out = function(leaves["q"], leaves["tokens"], row_BLN, leaves["weight"], mixing)
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(2)).bfloat16()
    (out * upstream.to(out)).sum().backward()
    grads = {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}
    assert all(grad.dtype == leaves[name].dtype for name, grad in grads.items())
    return {"out": out.detach()} | grads


def check(path, found, inputs, mixing):
    """Bound: of each tensor's largest number. What is no wider than 8 bits is rounded twice."""
    expected = run(exactly, inputs, mixing)
    if mixing == "unweighted":  # no gradient, or none to speak of
        assert not found.pop("weight", torch.zeros(())).any()
    assert found.keys() == expected.keys()
    for name, exact in expected.items():
        error = (found[name].double() - exact).abs().max() / exact.abs().max()
        assert error < 0.02, f"{name}: {error:.1e}"


@pytest.mark.parametrize("mixing", MIXINGS)
def test_gradients(path, mixing):
    if path.startswith("triton"):
        pytest.skip("test_triton_attention has them")
    q_BLHE, *rest = inputs = make_inputs(1)
    token_UTE, *others = rest
    narrow = q_BLHE.bfloat16(), token_UTE.bfloat16(), *others
    found = run(lambda *tensors: read(path, *tensors), narrow, mixing)
    check(path, found, inputs, mixing)


@pytest.mark.parametrize("backward", ["within", "after"])
@pytest.mark.parametrize("queries", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mixing", MIXINGS)
def test_autocast(path, mixing, queries, backward):
    """Of tokens in float32, as a bank's, and of queries in either. Lightning takes the gradients
    after autocast, the bench within."""
    if path.startswith("triton"):
        pytest.skip("autocast is the chooser's, before any kernel")
    q_BLHE, *rest = inputs = make_inputs(1)

    def under_autocast(*tensors):
        with torch.autocast("cpu", torch.bfloat16):
            return read(path, *tensors)

    if backward == "after":
        found = run(under_autocast, (q_BLHE.to(queries), *rest), mixing)
    else:
        with torch.autocast("cpu", torch.bfloat16):
            found = run(under_autocast, (q_BLHE.to(queries), *rest), mixing)
    assert found["out"].dtype == (queries if path == "kept" else torch.bfloat16)
    check(path, found, inputs, mixing)
