"""Evaluates the model while a phase trains."""

from __future__ import annotations

import time
from typing import Any

import lightning as L

from moc.evaluate.evaluator import BoundaryEvaluator
from moc.train.distributed import barrier
from moc.train.logger import JournalLogger
from moc.train.module import StudyModule


class InPhaseEvaluation(L.Callback):
    """Scores the subset of ``evals.in_phase`` about every ``every_tokens`` training tokens.

    It observes and does nothing else, so that weights come out the same to the bit with and without
    it. Its time is logged as ``<phase>/eval/elapsed_sec``, and ``Throughput`` does not count it.
    Boundaries score the same subset themselves. Every rank takes part, rank 0 writes.
    """

    def __init__(self, evaluator: BoundaryEvaluator, *, every_tokens: int) -> None:
        self.evaluator, self.every_tokens = evaluator, every_tokens

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        assert isinstance(pl_module, StudyModule) and isinstance(trainer.logger, JournalLogger)
        step, logger = pl_module.step, trainer.logger
        if step == logger.num_steps or not is_due(step, logger.tokens_per_step, self.every_tokens):
            return
        begun = time.monotonic()
        metrics = self.evaluator.glance(pl_module.model)
        metrics[f"{logger.phase}/eval/elapsed_sec"] = time.monotonic() - begun
        if trainer.is_global_zero:
            logger.flush()
            tokens = logger.tokens_at(step)
            record = {"phase": logger.phase, "step": step, "tokens": tokens, "metrics": metrics}
            logger.journal.append(record)
        barrier()


def is_due(step: int, tokens_per_step: int, every_tokens: int) -> bool:
    """Whether ``step`` (counted from 1) is the first at or after a multiple of ``every_tokens``."""
    return step * tokens_per_step // every_tokens > (step - 1) * tokens_per_step // every_tokens
