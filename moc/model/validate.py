"""Checks of a model's config."""

from __future__ import annotations

from typing import get_args

from moc.model.config import ModelConfig, OutputInit, Variant, parse_layers
from moc.model.memory.build import build_memory
from moc.model.memory.checks import check_choice, check_heads
from moc.ranges import check_ranges


def validate_model(config: ModelConfig) -> None:
    """Check what the types cannot say.

    Raises:
        ValueError: naming the setting, its value and the remedy.
    """
    check_ranges(config, "model")
    check_heads("model", config.dim, config.num_heads, config.num_kv_heads)
    if config.dim // config.num_heads % 2:
        raise ValueError(
            f"model.dim / model.num_heads is {config.dim // config.num_heads}; "
            "rotary embeddings need an even head width"
        )
    memory = config.memory
    if memory is None:
        return
    parse_layers(memory.layers, config.num_layers)
    for name, choices in (
        ("variant", get_args(Variant)),
        ("output_init", get_args(OutputInit)),
        ("address", ("learned", "random")),
        ("rows", ("all", "one")),
        ("gate", ("learned", "one")),
    ):
        check_choice(f"memory.{name}", getattr(memory, name), choices)
    build_memory(config)
