"""A phase of one optimizer step on given tokens."""

from __future__ import annotations

from typing import Any

import lightning as L
from torch import Tensor
from torch.utils.data import DataLoader


class OneBatch(L.LightningDataModule):
    """Tokens (A, B, L + 1) and loss mask (A, B, L) of A micro-batches."""

    def __init__(self, tokens: Tensor, mask: Tensor) -> None:
        super().__init__()
        self.batch: dict[str, Any] = {"tokens": tokens, "loss_mask": mask, "sample": 0}

    def train_dataloader(self) -> DataLoader:
        return DataLoader([self.batch], batch_size=None)  # type: ignore[arg-type]
