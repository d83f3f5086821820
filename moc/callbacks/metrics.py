"""Loss, learning rate and gradient norm into the journal."""

from __future__ import annotations

from typing import Any

import lightning as L

from moc.train.logger import JournalLogger
from moc.train.module import StudyModule


class TrainingMetrics(L.Callback):
    """What ``StudyModule.training_step`` returned, at every recorded step.

    The router's losses are means over layers, without the coefficients that training gives them.
    """

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *_: Any
    ) -> None:
        assert isinstance(pl_module, StudyModule) and isinstance(trainer.logger, JournalLogger)
        if not trainer.logger.due(pl_module.step):
            return
        metrics = {
            "train/loss": float(outputs["loss"]),
            "train/grad_norm": float(outputs["grad_norm"]),
            "train/lr": outputs["lr_factor"] * pl_module.phase.optimizer.backbone.lr,
        }
        if outputs["balance_loss"] is not None:
            metrics["train/balance_loss"] = float(outputs["balance_loss"].mean())
            metrics["train/z_loss"] = float(outputs["z_loss"].mean())
        trainer.logger.log_metrics(metrics, pl_module.step)
