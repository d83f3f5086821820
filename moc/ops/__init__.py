"""Attention from positions to the chapters that their routing group chose."""

from moc.ops.routed_attention import routed_attention, shared_attention_mass

__all__ = ["routed_attention", "shared_attention_mass"]
