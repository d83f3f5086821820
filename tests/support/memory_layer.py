"""One block's memory, without the rest of the block."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from moc.model import ModelConfig
from moc.model.layers import RMSNorm
from moc.model.memory.bank import BankRows
from moc.model.memory.build import build_memory
from moc.model.memory.seam import Address, Context


class MemoryLayer(nn.Module):
    """A memory and its norm; parameters are named as in a block."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.memory_norm = RMSNorm(config.dim)
        self.memory = build_memory(config).build_layer()

    def forward(
        self,
        x_BLD: Tensor,
        stream_BLD: Tensor,
        bank_RX: Tensor,
        *,
        pool_BL: Tensor | None = None,
        slot_UX: Tensor | None = None,
    ) -> tuple[Tensor, Address]:
        """What is added to the stream ``x_BLD``, addressed by what ``stream_BLD`` shows."""
        tokens_BL = torch.zeros(x_BLD.shape[:2], dtype=torch.long)
        context = Context(BankRows(bank_RX, slot_UX), tokens_BL, stream_BLD, pool_BL)
        read_BLD, address = self.memory(self.memory_norm(x_BLD), context)
        return read_BLD, address
