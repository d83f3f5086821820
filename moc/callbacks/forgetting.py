"""Evaluates the model at every boundary between phases."""

from __future__ import annotations

from typing import Any

import lightning as L

from moc.evaluate import BoundaryEvaluator
from moc.rundir import RunDir
from moc.train.checkpoints import save_boundary
from moc.train.distributed import barrier
from moc.train.logger import JournalLogger
from moc.train.module import StudyModule


class Forgetting(L.Callback):
    """Saves and scores the model before the first phase and after each.

    Every rank scores the same requests, so that sharded forward passes stay in step; rank 0
    writes.

    Args:
        phase_index: of the phase that this trainer runs.
        keep_optimizer: whether the next phase asks for this one's Adam moments.
    """

    def __init__(
        self,
        run: RunDir,
        evaluator: BoundaryEvaluator,
        *,
        phase_index: int,
        config_hash: str,
        keep_optimizer: bool,
    ) -> None:
        self.run, self.evaluator = run, evaluator
        self.phase_index, self.config_hash = phase_index, config_hash
        self.keep_optimizer = keep_optimizer

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, StudyModule)
        if self.phase_index == 0 and pl_module.step == 0:
            if self.evaluator.is_done(self.run.boundary(0)):
                return  # killed between this boundary and the first checkpoint
            self._boundary(trainer, pl_module, 0)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, StudyModule)
        self._boundary(trainer, pl_module, self.phase_index + 1)

    def _boundary(self, trainer: L.Trainer, pl_module: StudyModule, index: int) -> None:
        logger: Any = trainer.logger
        assert isinstance(logger, JournalLogger)
        folder = self.run.boundary(index)
        tokens = logger.tokens_at(pl_module.step)
        save_boundary(
            folder,
            pl_module.model,
            trainer.optimizers[0] if self.keep_optimizer and index else None,
            phase=self.run.boundary_name(index),
            step=pl_module.step,
            tokens=tokens,
            config_hash=self.config_hash if index else None,
        )
        logger.flush()
        self.evaluator.evaluate(
            pl_module.model,
            folder,
            index=index,
            step=pl_module.step,
            tokens=tokens,
            journal=logger.journal,
        )
        barrier()
