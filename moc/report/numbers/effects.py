"""What became of every arm's scores, with intervals over seeds and items; each computed once."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from evals.statistics import forgetting
from evals.statistics.estimates import Estimate, estimate_of, over_seeds
from evals.statistics.inference import (
    Interval,
    churn,
    difference_in_differences,
    hierarchical_interval,
    mcnemar_exact,
)
from evals.statistics.power import Variances, variances_of, variances_over_seeds
from moc.report.numbers.items import Cell
from moc.report.numbers.records import TaskScore
from moc.report.numbers.results import START, Results

BySeed = dict[int, float]


@dataclass(frozen=True)
class Versus:
    """How much less one arm lost than another, paired by seed and item, and what that rests on."""

    difference: Estimate
    variances: Variances | None  # None where too little says how large they are
    num_items: int  # 1 where seeds alone were compared


@dataclass(frozen=True)
class Churn:
    """Items that changed sides between two boundaries, as shares of all items."""

    right_to_wrong: Interval
    wrong_to_right: Interval
    by_seed: dict[int, tuple[int, int, float]]  # both counts; p of McNemar's exact test


def change(results: Results, arm: str, task: str, before: str, after: str) -> Estimate | None:
    """Score after minus score before, on the same items."""
    key = ("change", arm, task, before, after)
    return results.once(key, lambda: _contrast(results, task, (arm, after, ""), (arm, before, "")))


def forgotten(results: Results, arm: str, task: str) -> Estimate | None:
    """Best earlier score minus the last one, of the seeds that got there; may be negative.

    Biased upward from three boundaries on: the best of several scores is also the luckiest.
    """
    return results.once(("forgotten", arm, task), lambda: _forgotten(results, arm, task))


def backward_transfer(results: Results, arm: str, task: str) -> Estimate | None:
    """Last score minus the one right after the phase that taught the task."""
    taught, last = results.taught_task(task), results.boundaries[-1]
    return None if taught in (None, last) else change(results, arm, task, str(taught), last)


def forward_transfer(results: Results, arm: str, task: str) -> Estimate | None:
    """What the phases before the one that taught the task did for it: its score right before
    that phase minus its score at the start. None for what the first phase taught, and for an arm
    whose own mixtures had it before (joint training)."""
    taught, source = results.taught_task(task), results.source_of(task)
    if taught in (None, results.phases[0]):
        return None
    if source and results.study.trained_before(arm, source, str(taught)):
        return None
    before = results.boundaries[results.boundaries.index(str(taught)) - 1]
    return change(results, arm, task, START, before)


def retention(results: Results, arm: str, task: str) -> Estimate | None:
    """Share of the score above its baseline that is left at the end, to first order in its error.

    NaN where the score was not clearly above its baseline when the task had been taught: there is
    nothing that could have been retained. None where it was not measured.
    """
    return results.once(("retention", arm, task), lambda: _retention(results, arm, task))


def churned(results: Results, arm: str, task: str, before: str, after: str) -> Churn | None:
    return results.once(
        ("churn", arm, task, before, after), lambda: _churned(results, arm, task, before, after)
    )


def versus(results: Results, arm: str, base: str, task: str) -> Versus | None:
    """How much less ``arm`` lost of ``task`` than ``base``, from the boundary after it was taught
    to the last: the difference of their changes, on the same items and seeds."""
    return results.once(("versus", arm, base, task), lambda: _versus(results, arm, base, task))


def controlled(
    results: Results, arm: str, task: str, boundary: str, control: str
) -> Estimate | None:
    """Score under ``control`` minus the score as it is, on the items that the control scored."""
    key = ("controlled", arm, task, boundary, control)
    cells = (arm, boundary, control), (arm, boundary, "")
    return results.once(key, lambda: _contrast(results, task, *cells))


def control_names(results: Results, boundary: str) -> list[str]:
    """The controls of ``boundary``, in the order in which they were asked for."""
    return list(
        dict.fromkeys(name for run in results.runs.values() for name in run.at(boundary).controls)
    )


def recorded(results: Results, arm: str, boundary: str, task: str, control: str = "") -> BySeed:
    """Seed -> the score as recorded, of the seeds that have it."""
    found = _scores(results, task, (arm, boundary, control))
    return {seed: score.value for seed, score in found.items()}


def kept_and_learned(results: Results, arm: str, old: str, other: str) -> list[tuple[float, float]]:
    """What was learned of ``other`` (a task, in percent, or the loss on a source) and the share of
    ``old`` retained, in percent, of every seed; empty where there was nothing to retain."""
    taught, last = str(results.taught_task(old)), results.boundaries[-1]
    score = results.score(arm, taught, old)
    if score is None or score.near:
        return []
    before, after = (recorded(results, arm, boundary, old) for boundary in (taught, last))
    learned = {
        seed: 100 * value for seed, value in recorded(results, arm, last, other).items()
    } or {
        run.seed: run.at(last).bits_per_byte[other]
        for run in results.runs_of(arm)
        if other in run.at(last).bits_per_byte
    }
    return [
        (
            learned[seed],
            100 * (after[seed] - score.baseline) / (before[seed] - score.baseline),
        )
        for seed in before
        if seed in after and seed in learned and before[seed] > score.baseline
    ]


def _scores(results: Results, task: str, cell: Cell) -> dict[int, TaskScore]:
    arm, boundary, control = cell
    found = {}
    for run in results.runs_of(arm):
        at = run.at(boundary)
        tasks = at.tasks
        if control:
            tasks = at.controls[control].tasks if control in at.controls else {}
        if task in tasks:
            found[run.seed] = tasks[task]
    return found


def _contrast(results: Results, task: str, plus: Cell, minus: Cell) -> Estimate | None:
    """Over seeds and items; over seeds alone where the items were not kept. None where these were
    not the same, by their number."""
    mine, others = (_scores(results, task, cell) for cell in (plus, minus))
    pairs = [(mine[seed], others[seed]) for seed in mine if seed in others]
    common = results.items(task).common(plus, minus)
    if common is None or len(common.seeds) < len(pairs):
        if any(one.num_items != other.num_items for one, other in pairs):
            return None
        return over_seeds([one.value - other.value for one, other in pairs])
    effect = hierarchical_interval(common.values[0] - common.values[1], common.cluster_N)
    return estimate_of(effect, len(common.seeds))


def _forgotten(results: Results, arm: str, task: str) -> Estimate | None:
    *earlier, last = results.boundaries
    scores = {boundary: recorded(results, arm, boundary, task) for boundary in earlier}
    best = {
        seed: max(measured, key=lambda b: scores[b][seed])
        for seed in recorded(results, arm, last, task)
        if (measured := [boundary for boundary in earlier if seed in scores[boundary]])
    }
    needed = sorted(set(best.values()))
    common = results.items(task).common((arm, last), *((arm, b) for b in needed)) if best else None
    if common is None or len(common.seeds) < len(best):
        end = recorded(results, arm, last, task)
        return over_seeds([scores[best[seed]][seed] - end[seed] for seed in best])
    after_SN, *before = common.values
    best_SN = np.stack([before[needed.index(best[s])][row] for row, s in enumerate(common.seeds)])
    effect = hierarchical_interval(best_SN - after_SN, common.cluster_N)
    return estimate_of(effect, len(common.seeds))


def _retention(results: Results, arm: str, task: str) -> Estimate | None:
    taught, last = str(results.taught_task(task)), results.boundaries[-1]
    score = results.score(arm, taught, task)
    if taught == last or score is None or not recorded(results, arm, last, task):
        return None
    if score.near:
        return Estimate(math.nan, 0)
    common = results.items(task).common((arm, taught), (arm, last))
    if common is None:
        before, after = (recorded(results, arm, boundary, task) for boundary in (taught, last))
        pairs = [(before[seed], after[seed]) for seed in before if seed in after]
        above = [sum(column) / len(pairs) - score.baseline for column in zip(*pairs, strict=True)]
        return Estimate(above[1] / above[0], len(pairs)) if pairs else None
    before_SN, after_SN = common.values
    effect = forgetting.retention(before_SN, after_SN, common.cluster_N, score.baseline)
    return estimate_of(effect, len(common.seeds))


def _churned(results: Results, arm: str, task: str, before: str, after: str) -> Churn | None:
    common = results.items(task).common((arm, before), (arm, after))
    if common is None:
        return None
    before_SN, after_SN = common.values
    lost, gained = churn(before_SN, after_SN, common.cluster_N)
    by_seed = {
        seed: (int((one > two).sum()), int((one < two).sum()), mcnemar_exact(one, two))
        for seed, one, two in zip(common.seeds, before_SN, after_SN, strict=True)
    }
    return Churn(lost, gained, by_seed)


def _versus(results: Results, arm: str, base: str, task: str) -> Versus | None:
    taught, last = str(results.taught_task(task)), results.boundaries[-1]
    cells = [(who, boundary) for who in (arm, base) for boundary in (taught, last)]
    items = results.items(task)
    common = items.common(*cells) if taught != last else None
    if common is None and all((*cell, "") in items.correct for cell in cells):
        return None  # of two studies, which share no item or no seed
    if common is not None:
        before, after, base_before, base_after = common.values
        effect = difference_in_differences(before, after, base_before, base_after, common.cluster_N)
        change_SN = (after - before) - (base_after - base_before)
        return Versus(
            estimate_of(effect, len(common.seeds)),
            variances_of(change_SN, common.cluster_N),
            change_SN.shape[1],
        )
    found = [recorded(results, who, boundary, task) for who, boundary in cells]
    seeds = [seed for seed in found[0] if all(seed in scores for scores in found)]
    values = [[scores[seed] for scores in found] for seed in seeds]
    changes = [(b - a) - (d - c) for a, b, c, d in values]
    difference = over_seeds(changes) if taught != last else None
    if difference is None:
        return None
    return Versus(difference, variances_over_seeds(changes), 1)
