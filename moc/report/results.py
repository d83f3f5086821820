"""What a study's run directories say, read once."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
from omegaconf import OmegaConf

from evals.statistics.forgetting import ScoreMatrix, bits_per_byte_matrix, score_matrix
from moc.report import phases as course
from moc.report.items import Items, load_items
from moc.report.runs import Run, load_run, read_json
from moc.report.scores import Score, score_of
from moc.store.rundir import ON_ANSWER

START = "start"  # the boundary before the first phase
NON_CAUSAL = "†"
NEAR = "≈"
NON_CAUSAL_NOTE = (
    f"{NON_CAUSAL} non-causal routing: chapters are chosen from the whole sequence, "
    "including later tokens"
)
NEAR_NOTE = f"{NEAR} not distinguishable from its baseline (the larger of chance and majority)"


Found = TypeVar("Found")


@dataclass
class Results:
    """A study as its run directories tell it."""

    dir: Path
    study: dict[str, Any]
    plan: dict[str, Any]
    environment: dict[str, Any]
    runs: dict[tuple[str, int], Run]
    baseline: str | None = None  # the arm that others are compared with, if a user has chosen it
    known: dict[Hashable, Any] = field(default_factory=dict, repr=False, compare=False)

    def once(self, key: Hashable, compute: Callable[[], Found]) -> Found:
        """What ``compute`` gave the first time: tables and figures share their intervals."""
        if key not in self.known:
            self.known[key] = compute()
        return self.known[key]

    @property
    def arms(self) -> list[str]:
        return list(self.study.get("arms") or {})

    @property
    def seeds(self) -> list[int]:
        return list(self.study.get("seeds") or [])

    @property
    def phases(self) -> list[str]:
        return list(self.study.get("phases") or {})

    @property
    def boundaries(self) -> list[str]:
        return [START, *self.phases]

    def boundaries_of(self, arm: str) -> list[str]:
        """Those that the arm has to reach; not all, where studies of other phases are joined."""
        return [START, *(self.study["arms"][arm].get("phases") or self.phases)]

    @property
    def transitions(self) -> list[tuple[str, str]]:
        """Boundary before and after each change of phase."""
        return list(zip(self.phases, self.phases[1:], strict=False))

    @cached_property
    def tasks(self) -> list[str]:
        return self._names_in("tasks")

    @cached_property
    def sources(self) -> list[str]:
        """Sources whose validation data is scored in bits per byte."""
        return self._names_in("bits_per_byte")

    def taught(self, source: str | None) -> str | None:
        """The boundary after the first phase whose mixture has ``source``; after the first phase
        for None, which no phase teaches in particular. None if no phase of any arm has it."""
        return self.phases[0] if source is None else course.taught(self.study, source)

    def source_of(self, task: str) -> str | None:
        """The source that ``task`` asks about; None for a stock task."""
        for run in self.runs.values():
            for record in run.evals.values():
                if "source" in record.get("tasks", {}).get(task, {}):
                    return record["tasks"][task]["source"]
        kind = task.partition("_")[0]  # before it was recorded: one source of a kind
        sources = self.study.get("data", {}).items()
        return next((name for name, source in sources if source["kind"] == kind), None)

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
        for run in self.runs_of(arm):
            if "causal" in run.info:
                return bool(run.info["causal"])
        memory = self.study["arms"][arm]["model"]["memory"]
        routed = memory is not None and memory["num_routed"] is not None
        return not (routed and memory["router"]["scope"] == "sequence")

    def label(self, arm: str) -> str:
        """The arm's name as every table and figure shows it, marked when it looks ahead."""
        return arm if self.is_causal(arm) else f"{arm}{NON_CAUSAL}"

    def routing(self, arm: str) -> str:
        """What shares a choice of chapters: ``segment of 32``, ``token``, ``sequence†``, ..."""
        memory = self.study["arms"][arm]["model"]["memory"]
        if memory is None or memory["num_routed"] is None:
            return "none"
        router = memory["router"]
        text = router["scope"] + ("" if self.is_causal(arm) else NON_CAUSAL)
        if router["scope"] == "segment":
            window = router["window_tokens"]
            text += f" of {router['segment_tokens']}" + (f", window {window}" if window else "")
        return text

    @property
    def any_non_causal(self) -> bool:
        return any(not self.is_causal(arm) for arm in self.arms)

    def model(self, arm: str) -> dict[str, Any] | None:
        """The arm's ModelConfig as trained; None while only the plan knows what it will be."""
        trained = next((run.model for run in self.runs_of(arm) if run.model), None)
        config = self.study["arms"][arm]
        return trained or (None if (config.get("iso_flop") or {}).get("solve") else config["model"])

    def runs_of(self, arm: str) -> list[Run]:
        return [self.runs[arm, seed] for seed in self.seeds if (arm, seed) in self.runs]

    def num_complete_seeds(self) -> int:
        """Seeds that every arm has finished."""
        return sum(
            all(
                set(self.boundaries_of(arm)) <= set(self.runs[arm, seed].evals) for arm in self.arms
            )
            for seed in self.seeds
        )

    def score(self, arm: str, boundary: str, task: str) -> Score | None:
        """Averaged over the seeds that got there; None if none did."""
        return self.once(("score", arm, boundary, task), lambda: self._score(arm, boundary, task))

    def bits_per_byte(self, arm: str, boundary: str, source: str) -> float | None:
        return _mean(
            run.evals.get(boundary, {}).get("bits_per_byte", {}).get(source)
            for run in self.runs_of(arm)
        )

    def task_matrices(self, arm: str) -> np.ndarray:
        """Every seed's ``score_matrix``: (seeds, boundaries, tasks), NaN where unmeasured."""
        return self._matrices(arm, score_matrix, self.tasks)

    def source_matrices(self, arm: str) -> np.ndarray:
        """Every seed's ``bits_per_byte_matrix``: (seeds, boundaries, sources)."""
        return self._matrices(arm, bits_per_byte_matrix, self.sources)

    def tokens_per_sec(self, arm: str, phase: str) -> float | None:
        """Median training throughput of ``phase``, averaged over seeds."""
        return self._median(arm, f"{phase}/train/tokens_per_sec")

    def data_wait(self, arm: str, phase: str) -> float | None:
        """Median share of the training time of ``phase`` that waited for data, over seeds."""
        return self._median(arm, f"{phase}/train/data_wait")

    def last_loss(self, arm: str, phase: str) -> float | None:
        """Training loss over the last tenth of what was logged in ``phase``, over seeds."""
        series = [run.series(f"{phase}/train/loss")[1] for run in self.runs_of(arm)]
        return _mean(_mean(values[-max(1, len(values) // 10) :]) for values in series)

    def phase_ends(self, arm: str | None = None) -> list[tuple[str, int]]:
        """Name of each phase of ``arm`` (of the study, for None) and the tokens when it ends."""
        return course.phase_ends(self.study, arm)

    def status(self, arm: str, seed: int) -> str:
        run = self.runs[arm, seed]
        if not run.info:
            return "missing"
        num_done, num_all = len(run.evals), len(self.boundaries_of(arm))
        if run.info.get("status") == "finished" and num_done == num_all:
            return "complete"
        return f"{run.info.get('status')}, {num_done} of {num_all} boundaries"

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

    def _score(self, arm: str, boundary: str, task: str) -> Score | None:
        found = (
            run.evals.get(boundary, {}).get("tasks", {}).get(task) for run in self.runs_of(arm)
        )
        records = [record for record in found if record]
        return score_of(records, self.items(task).common((arm, boundary)))

    def _median(self, arm: str, name: str) -> float | None:
        series = [run.series(name)[1] for run in self.runs_of(arm)]
        return _mean(statistics.median(values) if values else None for values in series)

    def _matrices(
        self, arm: str, build: Callable[[list[dict[str, Any]]], ScoreMatrix], names: list[str]
    ) -> np.ndarray:
        runs = self.runs_of(arm)
        values = np.full((len(runs), len(self.boundaries), len(names)), np.nan)
        for seed_values, run in zip(values, runs, strict=True):
            matrix = build(
                [
                    run.evals.get(name)
                    or {"boundary": name, "index": index, "tasks": {}, "bits_per_byte": {}}
                    for index, name in enumerate(self.boundaries)
                ]
            )
            for name, column in zip(matrix.names, matrix.values.T, strict=True):
                seed_values[:, names.index(name)] = column
        return values

    def _names_in(self, part: str) -> list[str]:
        """Keys of one part of the EvalRecords, in the order they first appear."""
        return list(
            dict.fromkeys(
                name
                for run in self.runs.values()
                for record in run.evals.values()
                for name in record.get(part, {})
            )
        )


def load_results(study_dir: Path) -> Results:
    """Read ``study_dir``.

    Raises:
        ValueError: if there is no study there.
    """
    study_file = study_dir / "study.yaml"
    if not study_file.is_file():
        raise ValueError(
            f"{study_dir} holds no study.yaml; give the folder of a study that has run"
        )
    study = cast(dict[str, Any], OmegaConf.to_container(OmegaConf.load(study_file)))
    runs = {
        (arm, seed): load_run(study_dir / "arms" / arm / f"seed-{seed}", arm, seed)
        for arm in study.get("arms") or {}
        for seed in study.get("seeds") or []
    }
    return Results(
        dir=study_dir,
        study=study,
        plan=read_json(study_dir / "plan.json"),
        environment=read_json(study_dir / "environment.json"),
        runs=runs,
    )


def mean_over_seeds(values: np.ndarray) -> np.ndarray:
    """Mean over the first axis of what was measured; NaN where nothing was."""
    known = np.isfinite(values)
    total = np.where(known, values, 0.0).sum(axis=0)
    return np.divide(
        total, known.sum(axis=0), out=np.full(total.shape, np.nan), where=known.any(axis=0)
    )


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None and math.isfinite(value)]
    return statistics.fmean(known) if known else None
