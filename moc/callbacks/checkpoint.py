"""Checkpoints inside a phase, and stopping on request."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L

from moc.errors import StudyInterrupted
from moc.train.checkpoints import prune_checkpoints, save_training_state
from moc.train.distributed import all_sum
from moc.train.logger import JournalLogger
from moc.train.module import StudyModule


class Checkpoint(L.Callback):
    """Every ``every`` steps, and once more when SIGINT or SIGTERM asks to stop.

    Args:
        folder: the run's ``checkpoints``.
        config_hash: of everything that decides the weights; a resumed run must match it.
        keep: how many to keep; those of finished phases are removed.
        saved: called (on rank 0) after each save, when the journal is committed.
    """

    def __init__(
        self,
        folder: Path,
        *,
        config_hash: str,
        every: int,
        keep: int,
        saved: Callable[[], None],
    ) -> None:
        self.folder, self.config_hash, self.saved = folder, config_hash, saved
        self.every, self.keep = every, keep
        self._stop_requested = False
        self._previous: dict[int, Any] = {}

    def on_train_start(self, *_: Any) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._request_stop)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        assert isinstance(pl_module, StudyModule) and isinstance(trainer.logger, JournalLogger)
        stop = self._any_rank_stops(pl_module)
        step, last = pl_module.step, trainer.logger.num_steps
        if not stop and (step % self.every or step == last):
            return
        save_training_state(
            self.folder / f"{trainer.logger.phase}-{step:08d}",
            pl_module.model,
            trainer.optimizers[0],
            phase=trainer.logger.phase,
            step=step,
            config_hash=self.config_hash,
        )
        if trainer.is_global_zero:
            trainer.logger.commit()
            prune_checkpoints(self.folder, trainer.logger.phase, self.keep)
            self.saved()
        if stop:
            raise StudyInterrupted(f"stopped in phase {trainer.logger.phase} at step {step}")

    def on_train_end(self, *_: Any) -> None:
        self._restore_handlers()

    def on_exception(self, *_: Any) -> None:
        self._restore_handlers()

    def _any_rank_stops(self, pl_module: StudyModule) -> bool:
        requested = pl_module.step_tensor(self._stop_requested)
        return bool(all_sum(requested))

    def _request_stop(self, number: int, frame: FrameType | None) -> None:
        if self._stop_requested:  # the second time, do not wait for the step
            self._restore_handlers()
            raise KeyboardInterrupt
        self._stop_requested = True
        print("stopping after this step; once more stops at once", flush=True)

    def _restore_handlers(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
