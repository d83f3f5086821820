"""Checkpoints inside a phase, and stopping on request."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch

from moc.errors import RunPaused, StudyInterrupted
from moc.store.lock import check_held
from moc.store.rundir import RunDir
from moc.train.checkpoints import prune_checkpoints, save_training_state
from moc.train.distributed import all_sum, is_distributed, is_main_process
from moc.train.logger import JournalLogger
from moc.train.module import StudyModule
from moc.train.signals import on_stop_signal, stop_at_once

KEPT = 2  # checkpoints of a phase: the last, and one to go on from should that be damaged


class Checkpoint(L.Callback):
    """Every ``every`` steps, at ``pause_step``, where training stops, and once more when SIGINT or
    SIGTERM asks any rank to stop.

    Once training has ended, and when asked again, either signal stops at once. Other callbacks take
    part with what ``state_dict`` returns and ``load_state_dict`` takes.

    Args:
        folder: the run's ``checkpoints``.
        config_hash: of everything that decides the weights; a resumed run must match it.
        data: fingerprint of each source's tokens, likewise.
        restored: the other callbacks' states in the checkpoint that training goes on from, by
            ``state_key``; empty if there is none.
        saved: called (on rank 0) after each save, when the journal is committed.
    """

    def __init__(
        self,
        folder: Path,
        *,
        config_hash: str,
        data: Mapping[str, str],
        every: int,
        pause_step: int | None = None,
        restored: Mapping[str, Any],
        saved: Callable[[], None],
    ) -> None:
        self.folder, self.saved = folder, saved
        self.config_hash, self.data = config_hash, dict(data)
        self.every, self.pause_step, self.restored = every, pause_step, restored
        self._requested: int | None = None  # the signal

    def on_fit_start(self, trainer: L.Trainer, *_: Any) -> None:
        for callback in _callbacks(trainer):
            if callback.state_key in self.restored:
                callback.load_state_dict(self.restored[callback.state_key])

    def on_train_start(self, *_: Any) -> None:
        on_stop_signal(self._request_stop)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        assert isinstance(pl_module, StudyModule) and isinstance(trainer.logger, JournalLogger)
        step = pl_module.step
        if step == trainer.logger.num_steps:
            return
        number = self._asked_to_stop(pl_module)
        if number or step % self.every == 0 or step == self.pause_step:
            check_held(self.folder.parent)
            trainer.logger.flush()  # what the checkpoint holds is never logged again
            if trainer.is_global_zero:
                RunDir(self.folder.parent).sync_journals()
            save_training_state(
                self.folder / f"{trainer.logger.phase}-{step:08d}",
                pl_module.model,
                trainer.optimizers[0],
                callbacks=_states(_callbacks(trainer)),
                phase=trainer.logger.phase,
                step=step,
                config_hash=self.config_hash,
                data=self.data,
            )
            if trainer.is_global_zero:
                trainer.logger.commit()
                prune_checkpoints(self.folder, trainer.logger.phase, KEPT)
                self.saved()
        if number:
            where = f"phase {trainer.logger.phase} at step {step}"
            raise StudyInterrupted(f"stopped in {where}", number)
        if step == self.pause_step:
            raise RunPaused

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, StudyModule) and isinstance(trainer.logger, JournalLogger)
        on_stop_signal(stop_at_once)
        if number := self._asked_to_stop(pl_module):
            raise StudyInterrupted(f"stopped at the end of phase {trainer.logger.phase}", number)

    def on_exception(self, *_: Any) -> None:
        on_stop_signal(stop_at_once)

    def _asked_to_stop(self, pl_module: StudyModule) -> int | None:
        """The signal that came to any rank, if one did; SIGTERM before SIGINT."""
        if not is_distributed():
            return self._requested
        numbers = (signal.SIGTERM, signal.SIGINT)
        requested = torch.tensor([float(self._requested == n) for n in numbers])
        counts = all_sum(requested.to(pl_module.device)).tolist()
        return next((n for n, count in zip(numbers, counts, strict=True) if count), None)

    def _request_stop(self, number: int) -> None:
        if self._requested is not None:
            stop_at_once(number)
        self._requested = number
        if is_main_process():
            print("stopping after this step; once more stops at once", flush=True)


def _callbacks(trainer: L.Trainer) -> Sequence[L.Callback]:
    return trainer.callbacks  # type: ignore[attr-defined]  # put there by one of its connectors


def _states(callbacks: Sequence[L.Callback]) -> dict[str, Any]:
    states = {callback.state_key: callback.state_dict() for callback in callbacks}
    return {key: state for key, state in states.items() if state}
