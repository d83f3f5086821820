"""Scores a probe as it trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L

from moc.callbacks.in_phase import is_due
from moc.config.schema import ProbeConfig
from moc.evaluate.evaluator import BoundaryEvaluator
from moc.evaluate.record import write_samples
from moc.train.distributed import barrier, is_main_process
from moc.train.logger import JournalLogger
from moc.train.module import StudyModule


class ProbeScores(L.Callback):
    """Scores before the first step, about every ``every_tokens``, and after the last.

    ``points`` are those of ``probe.json``; the first and the last leave their samples in
    ``folder/samples-<tokens>``. Every rank takes part, rank 0 writes.
    """

    def __init__(self, evaluator: BoundaryEvaluator, probe: ProbeConfig, folder: Path) -> None:
        self.evaluator, self.probe, self.folder = evaluator, probe, folder
        self.tasks = probe.tasks or evaluator.tasks
        self.points: list[dict[str, Any]] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._score(pl_module, tokens=0, keep=True)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        assert isinstance(pl_module, StudyModule) and isinstance(trainer.logger, JournalLogger)
        step, size = pl_module.step, trainer.logger.tokens_per_step
        last = step == trainer.logger.num_steps
        if last or is_due(step, size, self.probe.every_tokens):
            self._score(pl_module, tokens=step * size, keep=last)

    def _score(self, pl_module: L.LightningModule, *, tokens: int, keep: bool) -> None:
        assert isinstance(pl_module, StudyModule)
        scores, samples = self.evaluator.score_tasks(
            pl_module.model, self.tasks, self.probe.num_items
        )
        kept = ("value", "num_items", "chance", "majority")
        tasks = {task: {key: score[key] for key in kept} for task, score in scores.items()}
        bits = self.evaluator.score_sources(pl_module.model, self.probe.num_items)
        self.points.append({"tokens": tokens, "tasks": tasks, "bits_per_byte": bits})
        if keep and is_main_process():
            write_samples(self.folder / f"samples-{tokens}", samples)
        barrier()
