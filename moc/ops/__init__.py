"""Attention from positions to the chapters that their group chose, and what is around it."""

from moc.ops.bank_rows import take_chapters
from moc.ops.copied_attention import copied_attention
from moc.ops.cross_entropy import linear_cross_entropy
from moc.ops.norm import rms_norm
from moc.ops.projection import project_chapters
from moc.ops.routed_attention import absorbed_attention, routed_attention, shared_attention_mass
from moc.ops.shapes import absorbs
from moc.ops.swiglu import swiglu

__all__ = [
    "absorbed_attention",
    "absorbs",
    "copied_attention",
    "linear_cross_entropy",
    "project_chapters",
    "rms_norm",
    "routed_attention",
    "shared_attention_mass",
    "swiglu",
    "take_chapters",
]
