"""How the rows in use, and what addresses them, moved over a transition."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from evals.measures.overlap import overlap as overlap_of
from moc.report.numbers.records import Run, UseWindow
from moc.report.numbers.results import Results

Picks = Mapping[str, Sequence[int]]  # layer -> of every row


@dataclass(frozen=True)
class Overlap:
    """What two counts of picks have in common."""

    jaccard: float
    mass: float


@dataclass(frozen=True)
class Moved:
    """One memory layer of one run over one transition; None: not measured."""

    run: Run
    before: str
    after: str
    layer: str
    training: Overlap | None  # each phase on its own data
    same_text: Overlap | None  # the earlier phase's validation text
    drift: float | None


def moved(results: Results) -> list[Moved]:
    return [
        entry
        for arm in results.arms
        for run in results.runs_of(arm)
        for before, after in results.transitions
        for entry in _moved(results, run, before, after)
    ]


def collapsed(results: Results) -> list[tuple[Run, str, float]]:
    """Runs and phases in which layers collapsed at any time, and up to how many."""
    found = [
        (run, phase, max(run.series(f"{phase}/memory/collapsed_layers")[1], default=0))
        for run in results.runs.values()
        for phase in results.phases
    ]
    return [entry for entry in found if entry[2] > 0]


def counted_runs(results: Results) -> list[Run]:
    """The first run with counts of picks of every arm that has any."""
    first: dict[str, Run] = {}
    for run in results.runs.values():
        if any(counted_windows(run, phase) for phase in results.phases):
            first.setdefault(run.arm, run)
    return list(first.values())


def counted_windows(run: Run, phase: str) -> list[UseWindow]:
    """The last windows of ``phase`` that list the picks of every row."""
    return [window for window in run.last_windows(phase) if window.load is not None]


def _moved(results: Results, run: Run, before: str, after: str) -> list[Moved]:
    shape = results.study.arms[run.arm].shape
    first = shape.memory.num_always if shape and shape.memory else 0
    mixture = results.study.arms[run.arm].phases[before].mixture
    training: list[Picks] = [
        {str(window.layer): window.load or [] for window in counted_windows(run, phase)}
        for phase in (before, after)
    ]
    same_text = [_picks(run, boundary, list(mixture)) for boundary in (before, after)]
    drift = run.at(after).memory.drift
    layers = {layer for found in (*training, *same_text, drift) for layer in found}
    return [
        Moved(
            run,
            before,
            after,
            layer,
            _overlap(training, layer, first),
            _overlap(same_text, layer, first),
            drift.get(layer),
        )
        for layer in sorted(layers, key=int)
    ]


def _overlap(loads: Sequence[Picks], layer: str, num_always: int) -> Overlap | None:
    picks = [load[layer] for load in loads if sum(load.get(layer, [])) > 0]
    if len(picks) < 2:
        return None
    return Overlap(**overlap_of(*picks, num_always=num_always))


def _picks(run: Run, boundary: str, sources: list[str]) -> Picks:
    """Over the validation text of ``sources``; empty if any lacks."""
    measured = run.at(boundary).memory.load
    if not sources or not all(source in measured for source in sources):
        return {}
    loads = [measured[source] for source in sources]
    return {
        layer: [sum(picks) for picks in zip(*(load[layer] for load in loads), strict=True)]
        for layer in loads[0]
    }
