"""Lightning's logger interface over the run's journal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from moc.store.journal import Journal


class JournalLogger(Logger):
    """Merges what module and callbacks log at one step into one journal record.

    Args:
        tokens_before: training tokens of the phases before this one, the origin of the token axis.
        every: steps between records; the first and last step of a phase are always recorded.
    """

    def __init__(
        self,
        journal: Journal,
        *,
        phase: str,
        tokens_before: int,
        tokens_per_step: int,
        num_steps: int,
        every: int,
    ) -> None:
        super().__init__()
        self.journal, self.phase = journal, phase
        self.tokens_before, self.tokens_per_step = tokens_before, tokens_per_step
        self.num_steps, self.every = num_steps, every
        self._step, self._metrics = 0, dict[str, float]()

    @property
    def name(self) -> str:
        return "journal"

    @property
    def version(self) -> str:
        return str(self.journal.path)

    def due(self, step: int) -> bool:
        """Whether ``step`` (counted from 1) gets a record."""
        return step == 1 or step == self.num_steps or step % self.every == 0

    def tokens_at(self, step: int) -> int:
        """Position of ``step`` on the study's token axis."""
        return self.tokens_before + step * self.tokens_per_step

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        assert step is not None
        if step != self._step:
            self.flush()
        self._step = step
        self._metrics.update({f"{self.phase}/{key}": float(v) for key, v in metrics.items()})

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: the resolved config is a file of its own."""

    @rank_zero_only
    def flush(self) -> None:
        if self._metrics:
            tokens = self.tokens_at(self._step)
            record = {"phase": self.phase, "step": self._step, "tokens": tokens}
            self.journal.append({**record, "metrics": self._metrics})
            self._metrics = {}

    @rank_zero_only
    def commit(self) -> None:
        """All that was logged is final: the weights that it led to are on disk."""
        self.flush()
        self.journal.commit()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        self.flush()
