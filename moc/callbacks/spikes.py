"""Notices a loss or gradient norm that jumps, says so, and does what the study asks for."""

from __future__ import annotations

from typing import Any

import lightning as L

from moc.config.schema import OnSpike
from moc.errors import TrainingDiverged
from moc.train.logger import JournalLogger
from moc.train.module import StudyModule
from moc.train.spikes import WINDOW, Band

LOSS, NORM = "train/spike_loss_sigmas", "train/spike_grad_norm_sigmas"  # in the journal


class Spikes(L.Callback):
    """Compares every step with the ``WINDOW`` steps of its phase before it (``moc.train.spikes``).

    A spike leaves a line in the terminal and, in the journal, the loss and gradient norm of its
    step with how far they lay outside. The bands are saved with checkpoints.

    Args:
        on_spike: warn; skip: leave the weights as they were; stop: so, and end the run.
    """

    def __init__(self, on_spike: OnSpike) -> None:
        self.on_spike = on_spike
        self.bands = {LOSS: Band(), NORM: Band()}
        self.found: dict[str, float] = {}  # of this step

    def state_dict(self) -> dict[str, Any]:
        return {name: list(band.values) for name, band in self.bands.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.bands = {name: Band(values) for name, values in state_dict.items()}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, StudyModule)
        pl_module.accept = self.accept

    def accept(self, loss: float, grad_norm: float) -> bool:
        """Whether the weights may take the step that these are of; once a step, all ranks alike."""
        sigmas = {LOSS: self.bands[LOSS].leave(loss), NORM: self.bands[NORM].leave(grad_norm)}
        self.found = {name: value for name, value in sigmas.items() if value}
        return not self.found or self.on_spike == "warn"

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *_: Any
    ) -> None:
        assert isinstance(pl_module, StudyModule) and isinstance(trainer.logger, JournalLogger)
        if not self.found:
            return
        values = {LOSS: float(outputs["loss"]), NORM: float(outputs["grad_norm"])}
        figures = {"train/loss": values[LOSS], "train/grad_norm": values[NORM], **self.found}
        if outputs["skipped"]:
            figures["train/skipped_for_spike"] = 1.0
        trainer.logger.log_metrics(figures, pl_module.step)
        words = {LOSS: "loss", NORM: "gradient norm"}
        facts = f"phase {trainer.logger.phase}, step {pl_module.step}: " + ", ".join(
            f"{words[name]} {values[name]:.4g} is {sigmas:.0f} sigma above the last {WINDOW} steps"
            for name, sigmas in self.found.items()
        )
        if self.on_spike == "stop":
            raise TrainingDiverged(
                f"{facts}; the weights are those before it. Lower the learning rate, or go on from "
                "the last checkpoint with trainer.on_spike=skip (or warn)"
            )
        if trainer.is_global_zero:
            done = "; update skipped" if self.on_spike == "skip" else ""
            print(f"spike: {facts}{done}", flush=True)
