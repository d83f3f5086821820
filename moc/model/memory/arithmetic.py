"""Rules by which FLOPs are counted: those of arXiv 2603.21096, appendix A.2."""

from __future__ import annotations


def linear(rows: int, dim_in: int, dim_out: int) -> int:
    """A linear map: a multiply-add counts as two."""
    return 2 * rows * dim_in * dim_out


def norm(rows: int, dim: int) -> int:
    return rows * (4 * dim + 4)


def softmax(scores: int) -> int:
    return 5 * scores


def top_k(rows: int, num_scores: int, k: int) -> int:
    return rows * num_scores * (k - 1).bit_length()  # ceil(log2 k)


def attention(batch: int, queries: int, keys: int, dim: int, num_heads: int) -> int:
    """Both attention products, and 7 per score for scale, mask and softmax."""
    return 4 * batch * queries * keys * dim + 7 * batch * num_heads * queries * keys
