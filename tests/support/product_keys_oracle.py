"""A product-key memory layer as its published definition, written out as loops.

Memory+ (arXiv 2412.09764) around product keys (arXiv 1907.05242).
For one position's input x, already normalised, and each head h:

1. q = W_q,h x, of width ``key_dim``; optionally normalised (``query_norm``):
   ``layer``: LayerNorm over a head's whole query; ``batch``: BatchNorm over all positions and heads
   of the batch, or with the statistics given. Scale and bias (key_dim) are shared by the heads.
2. q's first half is scored against the head's half-keys keys[h, 0], its second against keys[h, 1].
3. The k best of each half, the k * k sums of theirs, the k best of those; key (i, j) is row
   i * n + j of the values.
4. Softmax over the k sums; the head's output is the values' sum with these weights.
5. out = W_o ((sum of the heads' outputs) * silu(W_g x)).

It shares no code with ``moc``. Numbers are tensors of one number, so that autograd gives the
gradients of whatever requires them. X positions, D model dim, H heads, n half-keys on each side.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

EPS = 1e-5  # of both norms

Vector = list[Tensor]


class Read(NamedTuple):
    """What a layer computed."""

    out: Tensor  # (X, D)
    picked: list[list[list[tuple[int, float]]]]  # [position][head]: k of (row, weight), best first


def naive_product_keys(
    x_XD: Tensor,
    tensors: dict[str, Tensor],
    *,
    num_heads: int,
    key_dim: int,
    k: int,
    query_norm: str = "none",
    training: bool = True,
) -> Read:
    """The layer's output for every position, and what each head picked.

    Args:
        tensors: ``query`` (H * key_dim, D), head by head; ``keys`` (H, 2, n, key_dim / 2);
            ``values`` (n * n, D); ``gate`` and ``out`` (D, D); without a gate, step 5 has none.
            With a norm, ``norm_weight`` and ``norm_bias`` (key_dim); for ``batch`` that does not
            train, ``running_mean`` and ``running_var`` (key_dim).
        query_norm: ``none``, ``layer`` or ``batch``.
        training: batch norm takes the batch's own statistics.
    """
    assert query_norm in ("none", "layer", "batch")
    queries = [  # [position][head]
        [
            [_dot(row, x) for row in tensors["query"][h * key_dim : (h + 1) * key_dim]]
            for h in range(num_heads)
        ]
        for x in x_XD
    ]
    if query_norm == "layer":
        queries = [[_layer_norm(query, tensors) for query in heads] for heads in queries]
    if query_norm == "batch":
        queries = _batch_norm(queries, tensors, training)

    out, picked = [], []
    for x, heads in zip(x_XD, queries, strict=True):
        memory, picks = torch.zeros_like(x), []
        for h, query in enumerate(heads):
            choice = _choose(query, tensors["keys"][h], k)
            for row, weight in choice:
                memory = memory + weight * tensors["values"][row]
            picks.append([(row, weight.item()) for row, weight in choice])
        if "gate" in tensors:
            gate = tensors["gate"] @ x
            memory = memory * gate * (1 / (1 + (-gate).exp()))
        out.append(tensors["out"] @ memory)
        picked.append(picks)
    return Read(torch.stack(out), picked)


def _choose(query: Vector, keys_2nY: Tensor, k: int) -> list[tuple[int, Tensor]]:
    """Steps 2 to 4: the rows that one head picks for one position, and their weights."""
    num_half, half = keys_2nY.shape[1:]
    best = []
    for side, part in enumerate((query[:half], query[half:])):
        scores = [(i, _dot(key, part)) for i, key in enumerate(keys_2nY[side])]
        best.append(_largest(scores, min(k, num_half)))
    sums = [(i * num_half + j, a + b) for i, a in best[0] for j, b in best[1]]
    top = _largest(sums, k)
    shares = [(score - top[0][1]).exp() for _, score in top]
    return [(row, share / sum(shares)) for (row, _), share in zip(top, shares, strict=True)]


def _largest(scores: list[tuple[int, Tensor]], k: int) -> list[tuple[int, Tensor]]:
    return sorted(scores, key=lambda pair: -pair[1].item())[:k]


def _dot(one: Tensor | Vector, other: Tensor | Vector) -> Tensor:
    return sum(a * b for a, b in zip(one, other, strict=True))


def _scaled(query: Vector, mean: Vector, var: Vector, tensors: dict[str, Tensor]) -> Vector:
    weight, bias = tensors["norm_weight"], tensors["norm_bias"]
    return [
        (q - mean[d]) / (var[d] + EPS).sqrt() * weight[d] + bias[d] for d, q in enumerate(query)
    ]


def _moments(numbers: Vector) -> tuple[Tensor, Tensor]:
    mean = sum(numbers) / len(numbers)
    return mean, sum((number - mean) ** 2 for number in numbers) / len(numbers)


def _layer_norm(query: Vector, tensors: dict[str, Tensor]) -> Vector:
    mean, var = _moments(query)
    return _scaled(query, [mean] * len(query), [var] * len(query), tensors)


def _batch_norm(
    queries: list[list[Vector]], tensors: dict[str, Tensor], training: bool
) -> list[list[Vector]]:
    if training:
        every = [query for heads in queries for query in heads]
        moments = [_moments([query[d] for query in every]) for d in range(len(every[0]))]
        mean, var = [m for m, _ in moments], [v for _, v in moments]
    else:
        mean, var = list(tensors["running_mean"]), list(tensors["running_var"])
    return [[_scaled(query, mean, var, tensors) for query in heads] for heads in queries]
