"""Sizes of a chapter memory, with what the settings leave open filled in."""

from __future__ import annotations

from typing import NamedTuple

from moc.model.config import ChaptersConfig, ModelConfig
from moc.ops import with_equal_weights


class Sizes(NamedTuple):
    dim: int  # D
    memory_dim: int  # M
    num_heads: int  # H
    num_kv_heads: int  # J
    num_shared: int  # S
    num_routed: int | None  # K; None: all chapters are read
    chapter_tokens: int  # T
    mixing: str
    qk_norm: bool
    gated: bool

    @classmethod
    def of(cls, config: ModelConfig, chapters: ChaptersConfig) -> Sizes:
        num_heads = chapters.num_heads or config.num_heads
        routed = chapters.num_routed is not None
        mixing = chapters.mixing if routed else with_equal_weights(chapters.mixing)
        if chapters.qk_norm and mixing == "joint":
            mixing = "joint_normed"  # normalised keys are not shrunk by a weight
        return cls(
            dim=config.dim,
            memory_dim=chapters.dim or config.dim,
            num_heads=num_heads,
            num_kv_heads=chapters.num_kv_heads or num_heads,
            num_shared=chapters.num_shared,
            num_routed=chapters.num_routed,
            chapter_tokens=chapters.chapter_tokens,
            mixing=mixing,
            qk_norm=chapters.qk_norm,
            gated=chapters.gated and config.memory is not None and config.memory.gate == "learned",
        )

    @property
    def head_dim(self) -> int:
        """E."""
        return self.dim // self.num_heads

    @property
    def kv_width(self) -> int:
        """Of a memory token's key, and of its value."""
        return self.num_kv_heads * self.head_dim

    @property
    def normalises_tokens(self) -> bool:
        """Shared and routed tokens live on different scales: each is normalised when both are
        there."""
        return self.num_routed is not None and self.num_shared > 0
