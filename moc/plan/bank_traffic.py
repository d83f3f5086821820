"""What a sharded bank makes devices exchange."""

from __future__ import annotations

from dataclasses import dataclass

from moc.model.config import ModelConfig
from moc.model.memory.bank import most_distinct
from moc.plan.flops import chapters_read, routing_groups


@dataclass(frozen=True)
class BankTraffic:
    """What one device receives for one micro-batch: by fetching, at most; or with whole banks."""

    fetched_chapters: int
    gathered_chapters: int
    chapter_bytes: int

    @property
    def fetching_moves_less(self) -> bool:
        return self.fetched_chapters < self.gathered_chapters


def bank_traffic(config: ModelConfig, context_length: int, micro_batch: int) -> BankTraffic | None:
    """None without memory.

    Every memory layer fetches its distinct chapters by itself, and once more where its block is
    recomputed for the backward pass. Gathered, a bank would come once and stay for both passes.
    """
    memory = config.memory
    if memory is None:
        return None
    num_layers = len(config.memory_layers())
    num_banks = -(-num_layers // (memory.layers_per_bank or num_layers))
    read = (micro_batch, routing_groups(memory, context_length), chapters_read(memory))
    distinct = most_distinct(memory.num_chapters, read, memory.num_shared)
    times = 2 if config.activation_checkpointing else 1
    return BankTraffic(
        fetched_chapters=times * num_layers * distinct,
        gathered_chapters=num_banks * memory.num_chapters,
        chapter_bytes=4 * memory.chapter_tokens * (memory.dim or config.dim),  # float32
    )
