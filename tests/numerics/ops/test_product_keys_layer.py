"""The two operations of a product-key memory, put together as its layer, equal the whole oracle.

What would break for a user: row i * n + j of the values that is another pair's; and what later
tests of the layer measure by, if the oracle itself were wrong.
"""

import pytest
import torch
from torch.nn import functional as F

from moc.ops import product_topk, weighted_rows
from tests.support.product_keys_oracle import naive_product_keys

POSITIONS, DIM, NUM_HEADS, KEY_DIM = 5, 6, 2, 4
NORMS = ["none", "layer", "batch", "batch, evaluating"]
SIZES = [(3, 4), (4, 3), (2, 4)]  # n half-keys, k


def make_tensors(num_half, norm):
    generator = torch.Generator().manual_seed(num_half)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    tensors = {
        "x": draw(POSITIONS, DIM),
        "query": draw(NUM_HEADS * KEY_DIM, DIM),
        "keys": draw(NUM_HEADS, 2, num_half, KEY_DIM // 2),
        "values": draw(num_half**2, DIM),
        "gate": draw(DIM, DIM),
        "out": draw(DIM, DIM),
    }
    if norm != "none":
        tensors |= {"norm_weight": draw(KEY_DIM), "norm_bias": draw(KEY_DIM)}
    statistics = {"running_mean": draw(KEY_DIM), "running_var": draw(KEY_DIM).square()}
    upstream = draw(POSITIONS, DIM)
    return tensors, statistics if norm == "batch, evaluating" else {}, upstream


def layer(x, query, keys, values, gate, out, k, norm, norm_weight=None, norm_bias=None, **running):
    q = F.linear(x, query).view(POSITIONS * NUM_HEADS, KEY_DIM)
    if norm == "layer":
        q = F.layer_norm(q, (KEY_DIM,), norm_weight, norm_bias)
    elif norm != "none":
        mean, var = running.get("running_mean"), running.get("running_var")
        q = F.batch_norm(q, mean, var, norm_weight, norm_bias, training=norm == "batch")
    q = q.view(POSITIONS, NUM_HEADS, 2, KEY_DIM // 2)
    scores = torch.einsum("xhse,hsne->sxhn", q, keys)
    score, index = product_topk(*scores, k)
    weight = score.softmax(-1)
    row_U, row_XN = index.flatten(1).unique(return_inverse=True)
    read = weighted_rows(values, row_U, row_XN, weight.flatten(1))
    return F.linear(read * F.silu(F.linear(x, gate)), out), index, weight


def gradients(function, tensors, upstream):
    tensors = {name: tensor.clone().requires_grad_() for name, tensor in tensors.items()}
    out, *rest = function(**tensors)
    out.backward(upstream)
    return out.detach(), {name: tensor.grad for name, tensor in tensors.items()}, rest


@pytest.mark.parametrize(("num_half", "k"), SIZES)
@pytest.mark.parametrize("norm", NORMS)
def test_the_layer_is_the_oracles(norm, num_half, k):
    tensors, statistics, upstream = make_tensors(num_half, norm)

    def naive(x, **tensors):
        return naive_product_keys(
            x,
            tensors | statistics,
            num_heads=NUM_HEADS,
            key_dim=KEY_DIM,
            k=k,
            query_norm=norm.split(",")[0],
            training=norm == "batch",
        )

    expected, expected_grads, (picked,) = gradients(naive, tensors, upstream)
    found, grads, (index, weight) = gradients(
        lambda **tensors: layer(**tensors, **statistics, k=k, norm=norm), tensors, upstream
    )
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-11)
    torch.testing.assert_close(grads, expected_grads, rtol=1e-9, atol=1e-10)
    for x in range(POSITIONS):
        for h in range(NUM_HEADS):
            rows, shares = zip(*picked[x][h], strict=True)
            assert index[x, h].tolist() == list(rows)
            assert weight[x, h].tolist() == pytest.approx(shares)
