"""Who was right on which item, lined up over runs. S seeds, N items of one task."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from moc.report.numbers.read import item_records
from moc.report.numbers.records import Run

AGREEMENT = 1e-6  # between a recorded score and the mean of its item records
Cell = tuple[str, str, str]  # arm, boundary, control ("": none)


@dataclass(frozen=True)
class Common:
    """The seeds and items that several cells share."""

    seeds: list[int]
    cluster_N: np.ndarray  # items of one cluster are not independent
    values: list[np.ndarray]  # (S, N) of every cell


@dataclass(frozen=True)
class Items:
    """The items of one task; an item is known by its hash, whoever answered it."""

    seeds: Sequence[int]
    cluster_N: np.ndarray
    correct: dict[Cell, np.ndarray]  # (S, N), 0 or 1; NaN: not measured

    def common(self, *cells: tuple[str, str] | Cell) -> Common | None:
        """What all of ``cells`` (arm, boundary and perhaps a control) have measured.

        Seeds that lack one of the cells are left out, then items that one of the others lacks.
        None if nothing is left.
        """
        full = [(cell[0], cell[1], cell[2] if len(cell) == 3 else "") for cell in cells]
        if any(cell not in self.correct for cell in full):
            return None
        values_CSN = np.stack([self.correct[cell] for cell in full])
        kept_S = np.isfinite(values_CSN).any(axis=2).all(axis=0)
        kept_N = np.isfinite(values_CSN[:, kept_S]).all(axis=(0, 1))
        if not kept_S.any() or not kept_N.any():
            return None
        seeds = [seed for seed, kept in zip(self.seeds, kept_S, strict=True) if kept]
        return Common(seeds, self.cluster_N[kept_N], list(values_CSN[:, kept_S][:, :, kept_N]))


def load_items(runs: Mapping[tuple[str, int], Run], seeds: Sequence[int], task: str) -> Items:
    """The item records of ``task``: of all ``runs``, at all boundaries, under all controls.

    Records whose mean is not the score that evals.json has are of another evaluation, and left out.
    """
    clusters: dict[str, str] = {}
    found: list[tuple[Cell, int, dict[str, float]]] = []
    for (arm, seed), run in runs.items():
        for boundary, at in run.boundaries.items():
            scores = {"": at.tasks} | {name: part.tasks for name, part in at.controls.items()}
            for control, tasks in scores.items():
                if task in tasks and seed in seeds:
                    samples = _by_key(item_records(at, task, control))
                    values = _right(samples, tasks[task].value)
                    found.append(((arm, boundary, control), seeds.index(seed), values))
                    for key in values.keys() - clusters.keys():
                        clusters[key] = samples[key].get("cluster", samples[key]["doc_hash"])
    columns = {key: column for column, key in enumerate(sorted(clusters))}
    correct: dict[Cell, np.ndarray] = {}
    for cell, row, values in found:
        if values:
            matrix = correct.setdefault(cell, np.full((len(seeds), len(columns)), np.nan))
            matrix[row, [columns[key] for key in values]] = list(values.values())
    names = np.array([clusters[key] for key in columns])
    return Items(seeds, np.unique(names, return_inverse=True)[1], correct)


def _by_key(samples: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Two items alike in everything are told apart by their order."""
    seen: Counter[str] = Counter()
    keyed = {}
    for sample in samples:
        key = f"{sample.get('subtask', '')} {sample['doc_hash']}"
        seen[key] += 1
        keyed[f"{key} {seen[key]}"] = sample
    return keyed


def _right(samples: Mapping[str, Mapping[str, Any]], value: float) -> dict[str, float]:
    """Item -> 1 or 0, by the metric whose mean is the score ``value``."""
    for name in ("correct", "correct_norm"):
        if samples and all(name in sample for sample in samples.values()):
            found = {key: float(sample[name]) for key, sample in samples.items()}
            if abs(statistics.fmean(found.values()) - value) < AGREEMENT:
                return found
    return {}
