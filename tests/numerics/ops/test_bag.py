"""The weighted sum of a bank's rows, and all its gradients, against loops in float64.

What would break for a user: value rows trained with another's gradient, a slot that holds less than
what the bank would have, memory that grows with the bank.
"""

import subprocess
import sys

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.profiler import ProfilerActivity, profile

from moc.ops import needs_distinct_rows, weighted_rows
from moc.ops.bag import _CHUNK_ROWS
from moc.ops.shards import shard_rows

torch.set_num_threads(1)
WAYS = ["slot", "larger slot", "bank"]


def make_inputs(num_rows=50, positions=9, num_read=6, dim=5, dtype=torch.float64):
    """Bank, index over the bank's rows, weights and the upstream gradient; one row read twice by
    one position, one by all of them."""
    generator = torch.Generator().manual_seed(num_rows)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    index_XN = torch.randint(num_rows, (positions, num_read), generator=generator)
    index_XN[2, :3] = index_XN[2, 3]
    index_XN[:, 5] = num_rows - 1
    return draw(num_rows, dim), index_XN, draw(positions, num_read), draw(positions, dim)


def by_hand(bank_RD, index_XN, weight_XN, upstream_XD):
    """Sums, gradient of the bank, gradient of the weights; no autograd."""
    bank, weight, upstream = bank_RD.double(), weight_XN.double(), upstream_XD.double()
    out, grad_bank = torch.zeros_like(upstream), torch.zeros_like(bank)
    grad_weight = torch.zeros_like(weight)
    for x, rows in enumerate(index_XN.tolist()):
        for n, row in enumerate(rows):
            for d in range(bank.shape[1]):
                out[x, d] += weight[x, n] * bank[row, d]
                grad_bank[row, d] += weight[x, n] * upstream[x, d]
                grad_weight[x, n] += bank[row, d] * upstream[x, d]
    return out, grad_bank, grad_weight


def gradients(way, bank_RD, row_U, index_XN, weight_XN, upstream_XD, call=weighted_rows):
    """Likewise, by ``weighted_rows``; what a slot has taken, brought to the rows of the bank."""
    bank = bank_RD.clone().requires_grad_()
    weight = weight_XN.clone().requires_grad_()
    if way == "bank":
        out = call(bank, row_U, index_XN, weight)
        out.backward(upstream_XD)
        return out.detach(), bank.grad, weight.grad
    num_slot_rows = len(row_U) + (3 if way == "larger slot" else 0)
    zero = torch.zeros((), dtype=bank.dtype)  # as Transformer.gradient_slots makes them
    slot = zero.expand(num_slot_rows, bank.shape[1]).requires_grad_()
    out = call(bank, row_U, index_XN, weight, slot)
    out.backward(upstream_XD)
    assert bank.grad is None
    assert slot.grad.shape == slot.shape
    grad_bank = torch.zeros_like(bank_RD)
    grad_bank[row_U] = slot.grad[: len(row_U)]
    return out.detach(), grad_bank, weight.grad


def assert_equal(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("num_rows", [1, 4, 6, 50])  # fewer than a position reads; most unread
def test_sums_and_gradients_are_those_of_a_loop(way, num_rows):
    bank, index, weight, upstream = make_inputs(num_rows)
    row_U, row_XN = index.unique(return_inverse=True)
    found = gradients(way, bank, row_U, row_XN, weight, upstream)
    assert_equal(found, by_hand(bank, index, weight, upstream))


@pytest.mark.parametrize("way", WAYS)
def test_more_rows_than_are_summed_at_a_time(way):
    num_rows = 2 * _CHUNK_ROWS + 100
    bank, index, weight, upstream = make_inputs(num_rows, positions=600, dim=2)
    row_U, row_XN = index.unique(return_inverse=True)
    assert _CHUNK_ROWS < len(row_U) < num_rows
    found = gradients(way, bank, row_U, row_XN, weight, upstream)
    assert_equal(found, by_hand(bank, index, weight, upstream))


@pytest.mark.parametrize("way", WAYS)
def test_rows_that_nobody_reads_get_no_gradient(way):
    """As where U must not depend on the data: others beside them, whose gradient is 0."""
    bank, index, weight, upstream = make_inputs()
    row_U = torch.arange(len(bank))
    found = gradients(way, bank, row_U, index, weight, upstream)
    assert_equal(found, by_hand(bank, index, weight, upstream))


@pytest.mark.parametrize("way", WAYS)
def test_compiled_code_computes_the_same_without_a_break(way):
    bank, index, weight, upstream = make_inputs()
    row_U = torch.arange(len(bank))
    torch._dynamo.reset()
    compiled = torch.compile(weighted_rows, fullgraph=True, backend="aot_eager")
    found = gradients(way, bank, row_U, index, weight, upstream, compiled)
    assert_equal(found, by_hand(bank, index, weight, upstream))


@pytest.mark.parametrize("way", WAYS)
def test_autocast_sums_in_the_banks_precision_and_rounds_once(way):
    bank, index, weight, upstream = make_inputs(dtype=torch.float32)
    weight = weight.bfloat16()
    upstream = upstream.bfloat16()
    row_U, row_XN = index.unique(return_inverse=True)

    def call(*arguments):
        with torch.autocast("cpu", torch.bfloat16):
            return weighted_rows(*arguments)

    out, grad_bank, grad_weight = gradients(way, bank, row_U, row_XN, weight, upstream, call)
    expected = by_hand(bank, index, weight, upstream)
    assert (out.dtype, grad_bank.dtype) == (torch.bfloat16, torch.float32)
    # half a unit in the last place of bfloat16's 8 bits, and what float32 adds
    torch.testing.assert_close(out.double(), expected[0], rtol=2**-8, atol=1e-6)
    torch.testing.assert_close(grad_bank.double(), expected[1], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(grad_weight.double(), expected[2], rtol=2**-8, atol=1e-6)


@pytest.mark.parametrize("way", WAYS)
def test_a_bank_in_bf16(way):
    bank, index, weight, upstream = make_inputs(dtype=torch.bfloat16)
    row_U, row_XN = index.unique(return_inverse=True)
    found = gradients(way, bank, row_U, row_XN, weight, upstream)
    expected = by_hand(bank, index, weight, upstream)
    for name, one, other in zip(("out", "bank", "weight"), found, expected, strict=True):
        assert one.dtype == torch.bfloat16, name
        torch.testing.assert_close(one.double(), other, rtol=2**-6, atol=2**-5)


def test_a_frozen_bank_and_frozen_weights():
    bank, index, weight, upstream = make_inputs()
    row_U, row_XN = index.unique(return_inverse=True)
    expected, _, grad_weight = by_hand(bank, index, weight, upstream)
    assert not weighted_rows(bank, row_U, row_XN, weight).requires_grad
    weight.requires_grad_()
    out = weighted_rows(bank, row_U, row_XN, weight)
    out.backward(upstream)
    assert_equal((out.detach(), weight.grad), (expected, grad_weight))
    assert bank.grad is None
    weight.grad = None
    assert not needs_distinct_rows(bank, None)
    out = weighted_rows(bank, None, index, weight)  # by the bank's own rows
    out.backward(upstream)
    assert_equal((out.detach(), weight.grad), (expected, grad_weight))


def test_rows_that_have_gradients_are_made_distinct():
    bank, index, weight, _ = make_inputs()
    slot = torch.zeros(3, bank.shape[1], dtype=bank.dtype, requires_grad=True)
    assert needs_distinct_rows(bank, slot)
    bank.requires_grad_()
    with pytest.raises(AssertionError):
        weighted_rows(bank, None, index, weight)
    with torch.no_grad():
        assert not needs_distinct_rows(bank, None)


@pytest.fixture
def mesh():
    """Of one rank; how rows find their way between two: tests/integration/test_sharded_bank.py."""
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("way", ["slot", "larger slot"])
def test_a_sharded_bank_is_fetched(way, mesh):
    bank, index, weight, upstream = make_inputs()
    row_U, row_XN = index.unique(return_inverse=True)

    def call(bank_RD, *rest):
        return weighted_rows(shard_rows(bank_RD, mesh), *rest)

    found = gradients(way, bank, row_U, row_XN, weight, upstream, call)
    assert_equal(found, by_hand(bank, index, weight, upstream))


def largest_allocation(run):
    run()  # whatever is made once
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        run()
    events = found.profiler.kineto_results.events()
    sizes = [event.nbytes() for event in events if event.name() == "[memory]"]
    assert sizes
    return max(sizes)


@pytest.mark.parametrize("way", ["slot", "frozen"])
def test_nothing_of_the_banks_size_comes_into_being(way):
    """Nor with a bank that trains without a slot: there it does, which the measure must see."""
    bank, index, weight, upstream = make_inputs(20_000, dim=16)
    row_U, row_XN = index.unique(return_inverse=True)

    def run(way):
        trained = bank.requires_grad_(way != "frozen")
        slot = torch.zeros(len(row_U), 16, dtype=bank.dtype, requires_grad=True)
        out = weighted_rows(
            trained, row_U, row_XN, weight.requires_grad_(), slot if way == "slot" else None
        )
        out.backward(upstream)
        bank.grad = None

    assert largest_allocation(lambda: run("bank")) >= bank.nbytes
    # a row's number, 8 bytes, is a sixteenth of the row; not even one for each
    assert largest_allocation(lambda: run(way)) < bank.nbytes / 16


def test_says_nothing_of_sparse_tensors():
    """PyTorch warns of its own once in a process, in the middle of somebody's training log."""
    code = (
        "import torch; from moc.ops import weighted_rows as read; i = torch.tensor([[0, 1]]);"
        "w = torch.ones(1, 2, requires_grad=True); read(torch.eye(2), i[0], i, w).sum().backward();"
        "assert w.grad.tolist() == [[1, 1]]"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
