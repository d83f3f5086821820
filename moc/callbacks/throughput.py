"""Tokens per second and model FLOPs utilisation.

Counted is the time from when the last callback of one step is done (or training has started) to
the end of the next step's ``training_step``: waiting for data, copying it to the device, forward,
backward and update. Not counted is what callbacks do at the end of a step, diagnostics, evaluations
and checkpoints: ``Throughput`` stands first among the callbacks and ``RestartClock`` last.
"""

from __future__ import annotations

import time
from typing import Any

import lightning as L
import torch

from moc.train.distributed import world_size
from moc.train.logger import JournalLogger
from moc.train.module import StudyModule


class Throughput(L.Callback):
    """Training tokens per second since the last record.

    Args:
        train_flops_per_token: of the matrix products that a step needs, recomputed blocks left out.
        peak_flops: of one device, see ``measure_matmul_peak``; None leaves MFU out.
    """

    def __init__(self, train_flops_per_token: float, peak_flops: float | None) -> None:
        self.train_flops_per_token, self.peak_flops = train_flops_per_token, peak_flops
        self.tokens_per_sec = 0.0
        self._elapsed_sec, self._tokens, self._begun = 0.0, 0, 0.0

    def start_clock(self) -> None:
        self._begun = time.perf_counter()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        assert isinstance(pl_module, StudyModule) and isinstance(trainer.logger, JournalLogger)
        due = trainer.logger.due(pl_module.step)
        if due and pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)  # the update is still under way
        self._elapsed_sec += time.perf_counter() - self._begun
        self._tokens += trainer.logger.tokens_per_step
        self.tokens_per_sec = self._tokens / self._elapsed_sec
        if not due:
            return
        metrics = {"train/tokens_per_sec": self.tokens_per_sec}
        if self.peak_flops is not None:
            achieved = self.tokens_per_sec * self.train_flops_per_token / world_size()
            metrics["train/mfu"] = achieved / self.peak_flops
        trainer.logger.log_metrics(metrics, pl_module.step)
        self._elapsed_sec, self._tokens = 0.0, 0


class RestartClock(L.Callback):
    """Makes ``throughput`` count again once all callbacks before this one are done."""

    def __init__(self, throughput: Throughput) -> None:
        self.throughput = throughput

    def on_train_start(self, *_: Any) -> None:
        self.throughput.start_clock()

    def on_train_batch_end(self, *_: Any) -> None:
        self.throughput.start_clock()


def measure_matmul_peak(device: torch.device, dtype: torch.dtype, seconds: float = 0.3) -> float:
    """FLOP/s of a large matrix product on ``device``, the best of several tries."""
    size = 8192 if device.type == "cuda" else 1024
    a = torch.randn(size, size, device=device, dtype=dtype)
    best, deadline = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < deadline:
        begun = time.perf_counter()
        torch.mm(a, a)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - begun)
    return 2 * size**3 / best
