"""What a sharded bank makes devices exchange."""

from __future__ import annotations

import math
from dataclasses import dataclass

from moc.model.config import ModelConfig
from moc.model.memory.build import build_memory
from moc.plan.flops import num_banks


@dataclass(frozen=True)
class BankTraffic:
    """What one device receives for one micro-batch: by fetching, at most; or with whole banks."""

    fetched_rows: int
    gathered_rows: int
    row_bytes: int
    row_name: str

    @property
    def fetching_moves_less(self) -> bool:
        return self.fetched_rows < self.gathered_rows


def bank_traffic(config: ModelConfig, context_length: int, micro_batch: int) -> BankTraffic | None:
    """None without memory, or with a bank of one row.

    Every memory layer fetches its distinct rows by itself, and once more where its block is
    recomputed for the backward pass. Gathered, a bank would come once and stay for both passes.
    """
    if config.memory is None or config.memory.rows == "one":
        return None
    kind = build_memory(config)
    num_layers = len(config.memory_layers())
    distinct = kind.most_rows_read(micro_batch, context_length)
    times = 2 if config.activation_checkpointing else 1
    return BankTraffic(
        fetched_rows=times * num_layers * distinct,
        gathered_rows=num_banks(config) * kind.num_rows,
        row_bytes=4 * math.prod(kind.row_shape),  # float32
        row_name=kind.row_name,
    )
