"""Learned memory in transformers: train it, compare it at equal compute, see what it forgets."""

__version__ = "0.1.0"
