"""Evaluates the model at every boundary between phases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import lightning as L

from moc.evaluate.evaluator import BoundaryEvaluator
from moc.store.lock import check_held
from moc.store.rundir import RunDir
from moc.train.checkpoints import save_boundary
from moc.train.distributed import barrier
from moc.train.logger import JournalLogger
from moc.train.module import StudyModule


class Forgetting(L.Callback):
    """Saves and scores the model before the first phase and after each.

    The weights are on disk as soon as the last step is done; the scores follow. Every rank scores
    the same requests, so that sharded forward passes stay in step; rank 0 writes.

    Args:
        phase_index: of the phase that this trainer runs.
        config_hashes: of everything that decides the weights, per boundary.
        data: fingerprint of the tokens of each source that this phase trains on.
        keep_optimizer: whether the next phase asks for this one's Adam moments.
    """

    def __init__(
        self,
        run: RunDir,
        evaluator: BoundaryEvaluator,
        *,
        phase_index: int,
        config_hashes: Sequence[str],
        data: Mapping[str, str],
        keep_optimizer: bool,
    ) -> None:
        self.run, self.evaluator = run, evaluator
        self.phase_index, self.config_hashes = phase_index, config_hashes
        self.data = dict(data)
        self.keep_optimizer = keep_optimizer

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, StudyModule)
        if self.phase_index == 0 and pl_module.step == 0:
            if self.evaluator.is_done(self.run.boundary(0)):
                return  # killed between this boundary and the first checkpoint
            self._save(trainer, pl_module, 0)
            self._evaluate(trainer, pl_module, 0)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        assert isinstance(pl_module, StudyModule) and isinstance(trainer.logger, JournalLogger)
        if pl_module.step == trainer.logger.num_steps:
            self._save(trainer, pl_module, self.phase_index + 1)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, StudyModule)
        self._evaluate(trainer, pl_module, self.phase_index + 1)

    def _save(self, trainer: L.Trainer, pl_module: StudyModule, index: int) -> None:
        assert isinstance(trainer.logger, JournalLogger)
        check_held(self.run.path)
        trainer.logger.flush()  # what the boundary holds is never logged again
        if trainer.is_global_zero:
            self.run.sync_journals()
        save_boundary(
            self.run.boundary(index),
            pl_module.model,
            trainer.optimizers[0] if self.keep_optimizer and index else None,
            phase=self.run.boundary_name(index),
            step=pl_module.step,
            tokens=trainer.logger.tokens_at(pl_module.step),
            config_hash=self.config_hashes[index],
            data=self.data if index else {},
        )
        trainer.logger.commit()

    def _evaluate(self, trainer: L.Trainer, pl_module: StudyModule, index: int) -> None:
        assert isinstance(trainer.logger, JournalLogger)
        self.evaluator.evaluate(
            pl_module.model,
            self.run.boundary(index),
            step=pl_module.step,
            tokens=trainer.logger.tokens_at(pl_module.step),
            journal=trainer.logger.journal,
        )
        barrier()
