"""Triton's routed attention against a loop over positions, in float64, with gradients.

What would break for a user: a model that trains on a GPU is not the one that was tested on a CPU.
Where there is a GPU the kernels run on it. Elsewhere one test runs this file again in a process
whose Triton interprets kernels, since Triton must know that before it is imported.
"""

import os
import subprocess
import sys

import pytest
import torch

from moc.ops import reference
from moc.ops.mixing import MIXINGS, Mixing, Weighting
from moc.ops.triton import attention as triton_attention
from moc.ops.triton import schedule as triton_schedule
from moc.ops.triton.attention import HAS_TRITON, INTERPRETED, attend, supports
from tests.support.oracle import naive_attention
from tests.support.triton_interpreter import bfloat16_as_on_a_gpu

torch.set_num_threads(1)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
RUNS_HERE = HAS_TRITON and (DEVICE == "cuda" or INTERPRETED)
needs_kernels = pytest.mark.skipif(not RUNS_HERE, reason="no GPU: a process of its own does it")

BATCH, LENGTH, NUM_HEADS, HEAD_DIM, NUM_DISTINCT, TOKENS = 2, 7, 2, 5, 6, 3
# the largest error of a tensor, over its largest number; 16 bits round what enters each product
BOUND = {torch.float32: 5e-6, torch.float16: 4e-3, torch.bfloat16: 3e-2}


def in_kernels(q, *arguments, scale=None, **how):
    """``routed_attention`` that leaves no choice."""
    return attend(q, *arguments, scale=q.shape[-1] ** -0.5 if scale is None else scale, **how)


def in_formulas(q, *arguments, **how):
    return reference.attend(q, *arguments, scale=q.shape[-1] ** -0.5, **how)


@pytest.mark.skipif(RUNS_HERE or not HAS_TRITON, reason="no Triton, or the tests run right here")
def test_kernels_in_the_interpreter():
    child = subprocess.run(
        [sys.executable, "-m", "pytest", __file__],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert child.returncode == 0, child.stdout + child.stderr


@pytest.fixture(params=[True, False], ids=["by_chapter", "by_group"])
def by_chapter(request, monkeypatch):
    """Either way, whatever the shapes."""
    monkeypatch.setattr(triton_attention, "goes_by_chapter", lambda *_: request.param)
    return request.param


@pytest.fixture
def bfloat16_products(monkeypatch):
    if INTERPRETED:
        bfloat16_as_on_a_gpu(monkeypatch)


def make_rows(kind, num_groups, *, num_read=3, num_distinct=NUM_DISTINCT):
    """(B, G, N) chapters, distinct within a group: random, chapter 4 in every group, or all."""
    generator = torch.Generator().manual_seed(num_groups)
    num_read = num_distinct if kind == "all" else num_read
    draws = [
        torch.randperm(num_distinct, generator=generator)[:num_read]
        for _ in range(BATCH * num_groups)
    ]
    if kind == "one_for_all":
        draws = [torch.tensor([4, *[c for c in row.tolist() if c != 4][:2]]) for row in draws]
    return torch.stack(draws).view(BATCH, num_groups, num_read)


def make_inputs(
    row_BGN, *, length=LENGTH, num_heads=NUM_HEADS, num_kv_heads=1, num_distinct=NUM_DISTINCT,
    tokens=TOKENS, head_dim=HEAD_DIM, dtype=torch.float32,
):  # fmt: skip
    """Queries, keys, values and weights, then what the gradients start from."""
    generator = torch.Generator().manual_seed(1)

    def draw(*shape):
        return torch.randn(shape, generator=generator)

    queries = len(row_BGN), length, num_heads, head_dim
    chapters = num_distinct, tokens, num_kv_heads, head_dim
    tensors = [draw(*shape).to(dtype) for shape in (queries, chapters, chapters)]
    return [*tensors, draw(*row_BGN.shape).softmax(-1)], draw(*queries).to(dtype)


def run(function, tensors, row_BGN, upstream, mixing, group_tokens, *, dtype=None, device=DEVICE):
    """Output and gradients, by name."""
    q, k, v, weight = (x.detach().to(device, dtype or x.dtype).requires_grad_() for x in tensors)
    row_BGN = row_BGN.to(device)
    out = function(q, k, v, row_BGN, weight, mixing=mixing, group_tokens=group_tokens)
    out.backward(upstream.to(device, out.dtype))
    grads = {"q": q.grad, "k": k.grad, "v": v.grad, "weight": weight.grad}
    return {"out": out.detach()} | {x: grad for x, grad in grads.items() if grad is not None}


def check(tensors, row_BGN, upstream, mixing, group_tokens, *, function=in_kernels):
    """Output and all gradients, which it returns, are the loop's; of unread chapters they are 0."""
    dtype, arguments = tensors[0].dtype, (tensors, row_BGN, upstream, mixing, group_tokens)
    result = run(function, *arguments)
    expected = run(naive_attention, *arguments, dtype=torch.float64, device="cpu")
    assert result.keys() == expected.keys()
    for name, exact in expected.items():
        assert result[name].dtype == (torch.float32 if name == "weight" else dtype)
        error = (result[name].cpu().double() - exact).abs().max() / exact.abs().max()
        assert error <= BOUND[dtype], f"{name}: {error:.1e}"
    unread = sorted(set(range(len(tensors[1]))) - set(row_BGN.flatten().tolist()))
    assert not result["k"][unread].any() and not result["v"][unread].any()
    return result


GROUPS = [(1, "one_for_all"), (4, "all"), (3, "random"), (7, "random"), (9, "one_for_all")]
# a weight's place in the formula: in groups of every size by two that differ most, of 4 by all
OTHERS = [mixing for mixing in MIXINGS if mixing not in ("joint", "per_chapter")]


@needs_kernels
@pytest.mark.parametrize(
    ("mixing", "group_tokens", "kind"),
    [
        *((mixing, *group) for mixing in ("joint", "per_chapter") for group in GROUPS),
        *((mixing, *group) for mixing in OTHERS for group in GROUPS[:1]),
    ],
)
def test_groups_read_their_own_chapters_and_chapters_learn_from_every_group(
    mixing, group_tokens, kind, by_chapter
):
    row_BGN = make_rows(kind, -(-LENGTH // group_tokens))
    tensors, upstream = make_inputs(row_BGN)
    check(tensors, row_BGN, upstream, mixing, group_tokens)


@needs_kernels
@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(3, 1), (4, 2), (2, 2)])
def test_query_heads_share_key_heads_in_consecutive_runs(num_heads, num_kv_heads, by_chapter):
    row_BGN = make_rows("random", 2)
    tensors, upstream = make_inputs(row_BGN, num_heads=num_heads, num_kv_heads=num_kv_heads)
    check(tensors, row_BGN, upstream, "joint", 4)


@needs_kernels
@pytest.mark.parametrize("mixing", ["joint", "per_chapter"])
def test_tiles_may_be_several_and_partly_filled(mixing, by_chapter):
    """40 rows in tiles of 32 (64 on a GPU), 20 tokens and 24 numbers in tiles of 32."""
    row_BGN = make_rows("random", 2)
    tensors, upstream = make_inputs(row_BGN, length=33, tokens=20, head_dim=24)
    check(tensors, row_BGN, upstream, mixing, 20)


@needs_kernels
@pytest.mark.parametrize("mixing", ["joint", "per_chapter"])
def test_a_chapter_that_many_read_is_shared_out_and_summed_the_same_way_twice(
    mixing, by_chapter, monkeypatch
):
    """Chapter 4 has 80 readers, in runs of one tile of 32 (64 on a GPU)."""
    monkeypatch.setattr(triton_schedule, "RUN_TILES", (1, 1))
    row_BGN = make_rows("one_for_all", 4)
    tensors, upstream = make_inputs(row_BGN, length=40, num_heads=1, num_kv_heads=1)
    first = check(tensors, row_BGN, upstream, mixing, 10)
    again = run(in_kernels, tensors, row_BGN, upstream, mixing, 10)
    assert all(torch.equal(first[name], again[name]) for name in first)


@needs_kernels
@pytest.mark.parametrize(
    ("mixing", "dtype"),
    [*((mixing, torch.bfloat16) for mixing in MIXINGS), ("joint", torch.float16)],
)
def test_sixteen_bits(mixing, dtype, by_chapter, bfloat16_products):
    row_BGN = make_rows("random", 2)
    tensors, upstream = make_inputs(row_BGN, dtype=dtype)
    check(tensors, row_BGN, upstream, mixing, 4)


@needs_kernels
@pytest.mark.parametrize("mixing", ["joint", "per_chapter", "log_bias"])
def test_a_vanished_weight_leaves_finite_gradients(mixing, by_chapter):
    """A confident router's last chapters have float32 weights of 0: training must survive them."""
    row_BGN = make_rows("random", 2)
    tensors, upstream = make_inputs(row_BGN)
    tensors[3] = torch.tensor([1.0, 0.0, 0.0]).expand(row_BGN.shape)
    arguments = tensors, row_BGN, upstream, mixing, 4
    result, expected = (run(way, *arguments) for way in (in_kernels, in_formulas))
    assert [name for name, tensor in result.items() if not tensor.isfinite().all()] == []
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)


@needs_kernels
@pytest.mark.parametrize("mixing", MIXINGS)
def test_weights_need_not_sum_to_1(mixing, by_chapter):
    row_BGN = make_rows("random", 2)
    tensors, upstream = make_inputs(row_BGN)
    tensors[3] = torch.tensor([1.0, 1.6, 0.9]).expand(row_BGN.shape)
    check(tensors, row_BGN, upstream, mixing, 4)


@needs_kernels
def test_chapters_that_nobody_reads_may_hold_anything(by_chapter):
    """Decoding keeps room for chapters that it has not projected yet: memory of any content."""
    row_BGN = make_rows("random", 1)
    row_BGN[:] = row_BGN[0]
    tensors, upstream = make_inputs(row_BGN)
    expected = run(in_kernels, tensors, row_BGN, upstream, "joint", 7)
    unread = sorted(set(range(NUM_DISTINCT)) - set(row_BGN.flatten().tolist()))
    tensors[1][unread], tensors[2][unread] = float("nan"), float("inf")
    result = run(in_kernels, tensors, row_BGN, upstream, "joint", 7)
    assert unread and all(torch.equal(result[name], expected[name]) for name in result)


@needs_kernels
def test_keys_and_values_may_be_slices(by_chapter):
    row_BGN = make_rows("random", 2)
    (q, k, v, weight), upstream = make_inputs(row_BGN)
    k, v = torch.cat([k, v], -1).chunk(2, -1)
    assert not k.is_contiguous()
    q = q.transpose(1, 2).contiguous().transpose(1, 2)
    check([q, k, v, weight], row_BGN, upstream, "joint", 4)


@needs_kernels
def test_a_scale_of_ones_own():
    row_BGN = make_rows("random", 2).to(DEVICE)
    q, k, v, weight = (tensor.to(DEVICE) for tensor in make_inputs(row_BGN)[0])
    options = {"mixing": "joint", "group_tokens": 4}
    scaled = in_kernels(q, k, v, row_BGN, weight, scale=1.0, **options)
    expected = in_kernels(q * HEAD_DIM**0.5, k, v, row_BGN, weight, **options)
    torch.testing.assert_close(scaled, expected)


@needs_kernels
@pytest.mark.parametrize("mixing", ["joint", "per_chapter", "unweighted"])
def test_compiled_without_a_graph_break(mixing, by_chapter):
    row_BGN = make_rows("random", 2)
    tensors, upstream = make_inputs(row_BGN)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def compiled(q, k, v, row_BGN, weight, **options):
        assert supports(q, k, 2, MIXINGS[mixing])
        return in_kernels(2 * q, k, v, row_BGN, weight, **options) / 2

    def plain(q, k, v, row_BGN, weight, **options):
        return in_kernels(2 * q, k, v, row_BGN, weight, **options) / 2

    results = (
        run(function, tensors, row_BGN, upstream, mixing, 4) for function in (compiled, plain)
    )
    torch.testing.assert_close(*results)


@needs_kernels
@pytest.mark.parametrize("mixing", ["joint", "per_chapter"])
def test_the_operator_is_what_its_registration_says(mixing, by_chapter):
    row_BGN = make_rows("random", 2)
    tensors, _ = make_inputs(row_BGN)
    q, k, v, weight = (tensor.to(DEVICE).requires_grad_() for tensor in tensors)
    arguments = q, k, v, row_BGN.to(DEVICE), weight, mixing, 4, 0.5, by_chapter
    torch.library.opcheck(torch.ops.moc.routed_attention.default, arguments)


# compiled, not run


class Compiled:
    """A kernel that is compiled for an H100 when launched, and leaves its results as they are."""

    def __init__(self, kernel):
        self.kernel = kernel
        self.shared_bytes = []

    def __getitem__(self, grid):
        return self.compile

    def compile(self, *arguments, num_warps=4, num_stages=3, **constants):
        import triton
        from triton.backends.compiler import GPUTarget

        kinds = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.int32: "*i32"}
        kinds |= {torch.int64: "*i64", int: "i32", float: "fp32"}
        names = self.kernel.arg_names[: len(arguments)]
        signature = {
            name: kinds[getattr(x, "dtype", type(x))]
            for name, x in zip(names, arguments, strict=True)
        }
        aligned = [["tt.divisibility", 16]]
        source = triton.compiler.ASTSource(
            self.kernel,
            signature | dict.fromkeys(constants, "constexpr"),
            constants,
            {(i,): aligned for i, x in enumerate(arguments) if isinstance(x, torch.Tensor)},
        )
        compiled = triton.compile(
            source,
            target=GPUTarget("cuda", 90, 32),
            options={"num_warps": num_warps, "num_stages": num_stages},
        )
        self.shared_bytes.append(compiled.metadata.shared)


@pytest.mark.skipif(not HAS_TRITON or INTERPRETED, reason="no compiler: no Triton, or interpreted")
@pytest.mark.parametrize("group_tokens", [1, 128])
@pytest.mark.parametrize(
    ("dtype", "tokens", "head_dim"),
    [(torch.bfloat16, 64, 64), (torch.bfloat16, 50, 256), (torch.float32, 64, 40)],
)
def test_kernels_compile_for_a_gpu_that_is_not_there(
    dtype, tokens, head_dim, group_tokens, monkeypatch
):
    """What the interpreter takes need not compile, or may not fit into shared memory."""
    from moc.ops.triton import backward, forward

    kernels = {}
    for module, names in [
        (forward, ("group_forward", "chapter_forward", "combine")),
        (backward, ("group_backward", "chapter_backward", "sum_parts", "row_dots")),
    ]:
        for name in names:
            kernels[name] = Compiled(getattr(module, name))
            monkeypatch.setattr(module, name, kernels[name])
    row_BGN = make_rows("random", 256 // group_tokens)
    tensors, upstream = make_inputs(
        row_BGN, length=256, num_kv_heads=1, tokens=tokens, head_dim=head_dim, dtype=dtype
    )
    run(in_kernels, tensors, row_BGN, upstream, "joint", group_tokens, device="cpu")
    used = {name for name, kernel in kernels.items() if kernel.shared_bytes}
    way = (
        {"chapter_forward", "combine"} if group_tokens == 1 else {"group_forward", "group_backward"}
    )
    assert used == way | {"row_dots", "chapter_backward", "sum_parts"}
    most = max(max(kernels[name].shared_bytes) for name in used)
    assert most <= triton_schedule.HOPPER_SHARED_BYTES


# without kernels


def test_what_is_supported():
    def supported(dtype=torch.float32, tokens=64, head_dim=64, num_groups=2, mixing="joint"):
        return supports(
            torch.empty(1, 1, 1, head_dim, dtype=dtype, device=DEVICE),
            torch.empty(1, tokens, 1, head_dim, dtype=dtype, device=DEVICE),
            num_groups,
            MIXINGS.get(mixing, mixing),
        )

    assert all(supported(mixing=mixing) == RUNS_HERE for mixing in MIXINGS)
    assert supported(torch.bfloat16) == (HAS_TRITON and DEVICE == "cuda")
    assert not supported(torch.float64)
    assert not supported(tokens=257) and not supported(tokens=16, head_dim=1024)
    assert not supported(num_groups=1)  # a whole text: fused attention is as fast
    root = Weighting("root", torch.sqrt, lambda grad, w: grad / (2 * w.sqrt()))
    weight = MIXINGS["joint"].score_factor
    for unknown in (
        Mixing(value_factor=root), Mixing(score_bias=weight),
        Mixing(score_factor=weight, per_chapter=True),
    ):  # fmt: skip
        assert not supported(mixing=unknown)


@pytest.mark.parametrize("group_tokens", [1, 7])
@pytest.mark.parametrize("spread", ["even", "one", "few"])
@pytest.mark.parametrize(("num_entries", "num_chapters"), [(1, 1), (3, 50), (96, 3), (700, 7)])
def test_every_entry_is_in_one_run_of_its_chapter(
    num_entries, num_chapters, spread, group_tokens, monkeypatch
):
    """However the entries fall on the chapters; the shapes depend on their number alone."""
    monkeypatch.setattr(triton_schedule, "RUN_TILES", (2, 2))
    row_P = torch.randint(num_chapters, (num_entries,), generator=torch.Generator().manual_seed(1))
    if spread == "one":
        row_P[:] = num_chapters - 1
    if spread == "few":
        row_P = row_P.square() // num_chapters
    sizes = {"BLOCK_M": 16, "R": 1}
    order = triton_schedule.sort_by_chapter(
        row_P.view(1, -1, 1), num_chapters, 1, group_tokens, sizes
    )
    assert len(order.chapter_Z) == num_chapters + num_entries * group_tokens // 32
    assert int(order.first_part_U[-1]) <= order.num_parts
    seen, runs = [], []
    for run_index, chapter in enumerate(order.chapter_Z.tolist()):
        if chapter == num_chapters:
            continue
        rank = run_index - int(order.first_run_U[chapter])
        begin = int(order.offset_U[chapter]) * group_tokens + rank * order.run_slots
        end = min(begin + order.run_slots, int(order.offset_U[chapter + 1]) * group_tokens)
        entries = [int(order.entry_P[slot // group_tokens]) for slot in range(begin, end)]
        assert all(row_P[entry] == chapter for entry in entries)
        seen += entries
        runs.append(chapter)
    assert sorted(seen) == sorted(list(range(num_entries)) * group_tokens)
    assert sorted(set(runs)) == list(range(num_chapters))  # unread ones too, to get zeros
    several = [chapter for chapter in set(runs) if runs.count(chapter) > 1]
    assert int(order.first_part_U[-1]) == sum(runs.count(chapter) for chapter in several)
