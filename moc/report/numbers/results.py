"""A study as its run directories tell it, and the plain questions that everybody asks of it."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from evals.statistics.estimates import mean_of_known
from moc.report.numbers.items import Items, load_items
from moc.report.numbers.read import read_study
from moc.report.numbers.records import Boundary, Run
from moc.report.numbers.scores import Score, score_of
from moc.report.numbers.study import Phase, Study
from moc.store.rundir import ON_ANSWER

START = "start"  # the boundary before the first phase
NON_CAUSAL = "†"
NEAR = "≈"
NON_CAUSAL_NOTE = (
    f"{NON_CAUSAL} non-causal routing: rows are chosen from the whole sequence, "
    "including later tokens"
)
NEAR_NOTE = f"{NEAR} not distinguishable from its baseline (the larger of chance and majority)"


Found = TypeVar("Found")


@dataclass
class Results:
    """A study, its runs, and what has been computed of them so far."""

    dir: Path
    study: Study
    runs: dict[tuple[str, int], Run]
    damaged: list[str] = field(default_factory=list)  # files left out, a line each
    baseline: str | None = None  # the arm that others are compared with, if a user has chosen it
    known: dict[Hashable, Any] = field(default_factory=dict, repr=False, compare=False)

    def once(self, key: Hashable, compute: Callable[[], Found]) -> Found:
        """What ``compute`` gave the first time: tables and figures share their intervals."""
        if key not in self.known:
            self.known[key] = compute()
        return self.known[key]

    @property
    def arms(self) -> list[str]:
        return list(self.study.arms)

    @property
    def seeds(self) -> list[int]:
        return list(self.study.seeds)

    @property
    def phases(self) -> list[str]:
        return list(self.study.phases)

    @property
    def boundaries(self) -> list[str]:
        return [START, *self.phases]

    def boundaries_of(self, arm: str) -> list[str]:
        """Those that the arm has to reach; not all, where studies of other phases are joined."""
        return [START, *self.study.phases_of(arm)]

    @property
    def transitions(self) -> list[tuple[str, str]]:
        """Boundary before and after each change of phase."""
        return list(zip(self.phases, self.phases[1:], strict=False))

    @cached_property
    def tasks(self) -> list[str]:
        return list(dict.fromkeys(task for one in self._reached() for task in one.tasks))

    @cached_property
    def sources(self) -> list[str]:
        """Sources whose validation data is scored in bits per byte."""
        return list(dict.fromkeys(name for one in self._reached() for name in one.bits_per_byte))

    def taught(self, source: str | None) -> str | None:
        """The boundary after the first phase whose mixture has ``source``; after the first phase
        for None, which no phase teaches in particular. None if no phase of any arm has it."""
        return self.phases[0] if source is None else self.study.taught(source)

    def source_of(self, task: str) -> str | None:
        """The source that ``task`` asks about; None for a stock task."""
        return next((b.tasks[task].source for b in self._reached() if task in b.tasks), None)

    def taught_task(self, task: str) -> str | None:
        """``taught`` of the source that ``task`` asks about."""
        return self.once(("taught", task), lambda: self.taught(self.source_of(task)))

    @property
    def earlier_tasks(self) -> list[str]:
        """Tasks that were taught before the last phase: what can have been forgotten. A second way
        of scoring one is no other task."""
        tasks = [task for task in self.tasks if not task.endswith(ON_ANSWER)]
        return [task for task in tasks if self.taught_task(task) in self.phases[:-1]]

    def items(self, task: str) -> Items:
        return self.once(("items", task), lambda: load_items(self.runs, self.seeds, task))

    def is_causal(self, arm: str) -> bool:
        return self.study.arms[arm].causal

    def label(self, arm: str) -> str:
        """The arm's name as every table and figure shows it, marked when it sees later tokens."""
        return arm if self.is_causal(arm) else f"{arm}{NON_CAUSAL}"

    def routing(self, arm: str) -> str:
        """What shares a choice of rows: ``segment of 32``, ``token``, ``sequence†``, ..."""
        text = self.study.arms[arm].routing
        return text if self.is_causal(arm) else re.sub(r"^\w+", rf"\g<0>{NON_CAUSAL}", text)

    @property
    def any_non_causal(self) -> bool:
        return any(not self.is_causal(arm) for arm in self.arms)

    @property
    def iso_flop_arm(self) -> str | None:
        """The first arm that is matched to another one's compute."""
        return next((arm.name for arm in self.study.arms.values() if arm.iso_flop), None)

    def phases_of(self, arm: str) -> list[Phase]:
        """As ``arm`` trains them."""
        return list(self.study.phases_of(arm).values())

    def runs_of(self, arm: str) -> list[Run]:
        return [self.runs[arm, seed] for seed in self.seeds if (arm, seed) in self.runs]

    def num_complete_seeds(self) -> int:
        """Seeds that every arm has finished."""
        return sum(
            all(
                set(self.boundaries_of(arm)) <= set(self.runs[arm, seed].boundaries)
                for arm in self.arms
            )
            for seed in self.seeds
        )

    def num_complete_runs(self) -> int:
        return sum(self.status(*key) == "complete" for key in self.runs)

    def score(self, arm: str, boundary: str, task: str) -> Score | None:
        """Averaged over the seeds that got there; None if none did."""
        return self.once(("score", arm, boundary, task), lambda: self._score(arm, boundary, task))

    def bits_per_byte(self, arm: str, boundary: str, source: str) -> float | None:
        return mean_of_known(
            run.at(boundary).bits_per_byte.get(source) for run in self.runs_of(arm)
        )

    def task_matrices(self, arm: str) -> np.ndarray:
        """Scores of every seed: (seeds, boundaries, tasks), NaN where unmeasured."""

        def scores_of(at: Boundary) -> dict[str, float]:
            return {task: score.value for task, score in at.tasks.items()}

        return self._matrices(arm, scores_of, self.tasks)

    def source_matrices(self, arm: str) -> np.ndarray:
        """Bits per byte of every seed: (seeds, boundaries, sources), NaN where unmeasured."""
        return self._matrices(arm, lambda at: dict(at.bits_per_byte), self.sources)

    def tokens_per_sec(self, arm: str, phase: str) -> float | None:
        """Median training throughput of ``phase``, averaged over seeds."""
        return self.median_of(arm, f"{phase}/train/tokens_per_sec")

    def data_wait(self, arm: str, phase: str) -> float | None:
        """Median share of the training time of ``phase`` that waited for data, over seeds."""
        return self.median_of(arm, f"{phase}/train/data_wait")

    def median_of(self, arm: str, metric: str) -> float | None:
        """Median of what was logged of ``metric``, averaged over seeds; None if nothing was."""
        series = [run.series(metric)[1] for run in self.runs_of(arm)]
        return mean_of_known(statistics.median(values) if values else None for values in series)

    def last_loss(self, arm: str, phase: str) -> float | None:
        """Training loss over the last tenth of what was logged in ``phase``, over seeds."""
        series = [run.series(f"{phase}/train/loss")[1] for run in self.runs_of(arm)]
        return mean_of_known(
            mean_of_known(values[-max(1, len(values) // 10) :]) for values in series
        )

    def phase_ends(self, arm: str | None = None) -> list[tuple[str, int]]:
        """Name of each phase of ``arm`` (of the study, for None) and the tokens when it ends."""
        return self.study.phase_ends(arm)

    def status(self, arm: str, seed: int) -> str:
        run = self.runs[arm, seed]
        if run.started is None:
            return "missing"
        num_done, num_all = len(run.boundaries), len(self.boundaries_of(arm))
        if run.status == "finished" and num_done == num_all:
            return "complete"
        return f"{run.status}, {num_done} of {num_all} boundaries"

    def caution(self) -> str | None:
        """What the number of seeds does not allow to say; None from three complete seeds on."""
        complete = self.num_complete_seeds()
        if complete >= 3:
            return None
        if len(self.seeds) == 1:
            return "One seed supports no claim: a claim needs at least three."
        return (
            f"{complete} of {len(self.seeds)} seeds are complete. "
            "One seed supports no claim: a claim needs at least three."
        )

    def _reached(self) -> list[Boundary]:
        return [boundary for run in self.runs.values() for boundary in run.boundaries.values()]

    def _score(self, arm: str, boundary: str, task: str) -> Score | None:
        found = [run.at(boundary).tasks.get(task) for run in self.runs_of(arm)]
        scores = [score for score in found if score]
        return score_of(scores, self.items(task).common((arm, boundary)))

    def _matrices(
        self, arm: str, values_of: Callable[[Boundary], dict[str, float]], names: list[str]
    ) -> np.ndarray:
        runs = self.runs_of(arm)
        rows = [[values_of(run.at(name)) for name in self.boundaries] for run in runs]
        found = [[[at.get(name, np.nan) for name in names] for at in row] for row in rows]
        return np.array(found, dtype=float).reshape(len(runs), len(self.boundaries), len(names))


def load_results(study_dir: Path) -> Results:
    """Read ``study_dir``.

    Raises:
        ValueError: if there is no study there.
    """
    return Results(study_dir, *read_study(study_dir))
