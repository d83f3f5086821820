"""Attention from positions to the chapters that their group chose, and what is around it.

In: tensors. Out: tensors, with their gradients. Each operation has one public function, which
chooses among the ways to run it on a device; nothing here knows a model or a config.
"""

from moc.ops.attention import (
    absorbed_attention,
    project_chapters,
    project_tokens,
    routed_attention,
)
from moc.ops.bag import needs_distinct_rows, weighted_rows
from moc.ops.figures import ReadFigures, read_figures
from moc.ops.kept import kept_attention
from moc.ops.loss import linear_cross_entropy
from moc.ops.mixing import with_equal_weights
from moc.ops.norm import rms_norm
from moc.ops.product_keys import product_topk
from moc.ops.rows import take_rows
from moc.ops.shapes import absorbs
from moc.ops.swiglu import swiglu

__all__ = [
    "ReadFigures",
    "absorbed_attention",
    "absorbs",
    "kept_attention",
    "linear_cross_entropy",
    "needs_distinct_rows",
    "product_topk",
    "project_chapters",
    "project_tokens",
    "read_figures",
    "rms_norm",
    "routed_attention",
    "swiglu",
    "take_rows",
    "weighted_rows",
    "with_equal_weights",
]
