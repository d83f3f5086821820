"""Tokens per second, model FLOPs utilisation, and the time lost to waiting for data.

Counted is the time from when the last callback of one step is done (or training has started) to
the end of the next step's ``training_step``: waiting for data, copying it to the device, forward,
backward and update. Not counted is what callbacks do at the end of a step, diagnostics, evaluations
and checkpoints: ``Throughput`` stands first among the callbacks and ``RestartClock`` last.
"""

from __future__ import annotations

import logging
import time
from typing import Any

import lightning as L
import torch
from lightning.pytorch.profilers import Profiler

from moc.train.distributed import world_size
from moc.train.logger import JournalLogger
from moc.train.module import StudyModule

log = logging.getLogger(__name__)

MAX_DATA_WAIT = 0.02  # share of the counted time; above it, say so
MIN_JUDGED_SEC = 1.0  # of counted time: in less, the clock and the scheduler decide


class Throughput(L.Callback):
    """Since the last record: training tokens per second, and the share of the counted time, between
    0 and 1, that this rank waited for its batches to be made and copied to the device.

    On a GPU that share is an upper bound: what it was given before may still be under way.

    Args:
        train_flops_per_token: of the matrix products that a step needs, recomputed blocks left out.
        peak_flops: of one device, see ``moc.bench.peak``; None leaves MFU out.
    """

    def __init__(self, train_flops_per_token: float, peak_flops: float | None) -> None:
        self.train_flops_per_token, self.peak_flops = train_flops_per_token, peak_flops
        self.tokens_per_sec = 0.0
        self._elapsed_sec, self._tokens, self._begun = 0.0, 0, 0.0
        self._wait_sec, self._fetches = 0.0, _Fetches()
        self._first_record, self._warned = True, False

    def start_clock(self) -> None:
        self._begun = time.perf_counter()

    def setup(self, trainer: L.Trainer, *_: Any, **__: Any) -> None:
        trainer.profiler = self._fetches  # type: ignore[attr-defined]  # set, but nowhere declared

    def on_train_batch_start(self, *_: Any) -> None:
        self._wait_sec += time.perf_counter() - self._fetches.begun

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
        data_wait = self._wait_sec / self._elapsed_sec
        metrics = {"train/tokens_per_sec": self.tokens_per_sec, "train/data_wait": data_wait}
        if self.peak_flops is not None:
            achieved = self.tokens_per_sec * self.train_flops_per_token / world_size()
            metrics["train/mfu"] = achieved / self.peak_flops
        trainer.logger.log_metrics(metrics, pl_module.step)
        if trainer.is_global_zero and data_wait > MAX_DATA_WAIT:
            self._warn(data_wait, f"phase {trainer.logger.phase}, step {pl_module.step}")
        self._elapsed_sec, self._wait_sec, self._tokens = 0.0, 0.0, 0
        self._first_record = False

    def _warn(self, data_wait: float, where: str) -> None:
        """Once, and not of the first record, in which worker processes and files are opened."""
        if self._first_record or self._warned or self._elapsed_sec < MIN_JUDGED_SEC:
            return
        self._warned = True
        message = "%s: %.1f %% of the training time is waiting for data; raise trainer.num_workers"
        log.warning(message, where, 100 * data_wait)


class _Fetches(Profiler):
    """Notes when Lightning asks for the next batch: no hook tells. Between the callbacks of a step
    and this, several ranks wait for one another, which is no waiting for data."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = 0.0

    def start(self, action_name: str) -> None:
        if action_name.endswith(".train_dataloader_next"):
            self.begun = time.perf_counter()

    def stop(self, action_name: str) -> None:
        pass


class RestartClock(L.Callback):
    """Makes ``throughput`` count again once all callbacks before this one are done."""

    def __init__(self, throughput: Throughput) -> None:
        self.throughput = throughput

    def on_train_start(self, *_: Any) -> None:
        self.throughput.start_clock()

    def on_train_batch_end(self, *_: Any) -> None:
        self.throughput.start_clock()
