"""Stops a run whose loss or gradient is no longer a number."""

from __future__ import annotations

import math
from typing import Any

import lightning as L

from moc.errors import TrainingDiverged
from moc.train.logger import JournalLogger
from moc.train.module import StudyModule

MAX_SKIPPED = 3  # in a row


class StopOnNonFinite(L.Callback):
    """Counts updates that ``StudyModule`` skipped because loss or gradient was NaN or infinite.

    The weights never see such an update. One is survived and reported; ``MAX_SKIPPED`` in a row
    end the run.
    """

    def __init__(self) -> None:
        self.in_a_row = 0

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *_: Any
    ) -> None:
        assert isinstance(pl_module, StudyModule) and isinstance(trainer.logger, JournalLogger)
        loss, grad_norm = float(outputs["loss"]), float(outputs["grad_norm"])
        if math.isfinite(loss) and math.isfinite(grad_norm):
            self.in_a_row = 0
            return
        self.in_a_row += 1
        facts = (
            f"phase {trainer.logger.phase}, step {pl_module.step}: loss {loss}, "
            f"gradient norm {grad_norm}"
        )
        if trainer.is_global_zero:
            print(f"update skipped, not finite: {facts}", flush=True)
        trainer.logger.log_metrics({"train/skipped_in_a_row": self.in_a_row}, pl_module.step)
        if self.in_a_row >= MAX_SKIPPED:
            raise TrainingDiverged(
                f"{MAX_SKIPPED} updates in a row were not finite ({facts}); the weights are those "
                "before the first of them. Lower the learning rate, or lengthen the warm-up"
            )
