"""Live progress: a rich bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from typing import Any

import lightning as L
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from moc.callbacks.throughput import Throughput
from moc.train.logger import JournalLogger
from moc.train.module import StudyModule

LINE_EVERY_SEC = 10.0


class LiveProgress(L.Callback):
    """Phase, step, ETA, loss and tokens per second.

    Args:
        title: arm and seed.
        throughput: where the tokens per second come from.
    """

    def __init__(self, title: str, throughput: Throughput) -> None:
        self.title, self.throughput = title, throughput
        self.console = Console()
        self._bar: Progress | None = None
        self._begun: float | None = None  # the first step, after any evaluation before it
        self._shown = 0.0
        self._first_step = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, StudyModule) and isinstance(trainer.logger, JournalLogger)
        if trainer.is_global_zero and self.console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.completed}/{task.total}"),
                TextColumn("{task.fields[figures]}"),
                TimeRemainingColumn(),
            )
            self._bar = Progress(*columns, console=self.console)
            self._bar.start()
            name = f"{self.title} · {trainer.logger.phase}"
            total = trainer.logger.num_steps
            self._bar.add_task(name, total=total, completed=pl_module.step, figures="")

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any
    ) -> None:
        assert isinstance(pl_module, StudyModule)
        if self._begun is None:
            self._begun, self._first_step = time.monotonic(), pl_module.step

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *_: Any
    ) -> None:
        assert isinstance(pl_module, StudyModule) and isinstance(trainer.logger, JournalLogger)
        if not trainer.is_global_zero:
            return
        step, num_steps = pl_module.step, trainer.logger.num_steps
        now = time.monotonic()
        if self._bar is not None:
            task = self._bar.tasks[0].id
            if now - self._shown > 0.5 or step == num_steps:
                self._shown = now
                self._bar.update(task, figures=self._figures(outputs))
            self._bar.update(task, completed=step)
        elif now - self._shown > LINE_EVERY_SEC or step == num_steps:
            self._shown = now
            assert self._begun is not None
            left = (now - self._begun) / (step - self._first_step) * (num_steps - step)
            print(
                f"{self.title} | {trainer.logger.phase} | step {step}/{num_steps} | "
                f"{self._figures(outputs)} | ETA {int(left) // 60}:{int(left) % 60:02d}",
                flush=True,
            )

    def on_train_end(self, *_: Any) -> None:
        self._close()

    def on_exception(self, *_: Any) -> None:
        self._close()

    def _figures(self, outputs: Any) -> str:
        rate = self.throughput.tokens_per_sec
        return f"loss {float(outputs['loss']):.3f} | {rate:,.0f} tokens/s"

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
