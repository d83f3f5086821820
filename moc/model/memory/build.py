"""Which kinds of memory there are."""

from __future__ import annotations

from moc.model.config import ModelConfig
from moc.model.memory.chapters.kind import Chapters
from moc.model.memory.product_keys import ProductKeys
from moc.model.memory.seam import Kind


def build_memory(config: ModelConfig) -> Kind:
    """The kind of memory that ``config.memory`` asks for, with its settings.

    Raises:
        ValueError: for an unknown kind, or settings that cannot be.
    """
    assert config.memory is not None
    return kind_called(config.memory.kind)(config)


def kind_called(name: str) -> type[Kind]:
    """
    Raises:
        ValueError: for an unknown kind.
    """
    match name:
        case "chapters":
            return Chapters
        case "product_keys":
            return ProductKeys
        case unknown:
            raise ValueError(f"model.memory.kind {unknown!r} is none of chapters, product_keys")


def routing_scope(config: ModelConfig) -> str:
    """What shares a choice of rows: ``sequence``, ``segment``, ``token``; ``none`` without one."""
    return "none" if config.memory is None else build_memory(config).scope


def is_causal(config: ModelConfig) -> bool:
    """Whether logits depend on no later token."""
    return config.memory is None or build_memory(config).causal
