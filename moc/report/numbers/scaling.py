"""The arms of a ladder as curves: loss over training compute and over training time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from evals.statistics.inference import Interval
from evals.statistics.scaling import CurveFit, Refusal, compute_to_match, fit_curve
from moc.report.numbers.results import Results
from moc.report.numbers.study import Arm
from moc.report.numbers.times import training_sec

Over = Literal["FLOPs", "seconds"]  # as planned, paper accounting; as measured, per seed
OVERS: tuple[Over, ...] = ("FLOPs", "seconds")


@dataclass(frozen=True)
class Asked:
    """Which loss, and against which arm."""

    phase: str  # at whose end
    source: str  # on whose validation text
    baseline: str  # an arm without its size


@dataclass(frozen=True)
class Point:
    """One arm at one size, in bits per byte of every seed that got there."""

    arm: str
    size: str
    flops: float | None
    seconds: float | None
    losses: dict[int, float]  # seed -> loss

    def compute(self, over: Over) -> float | None:
        return self.flops if over == "FLOPs" else self.seconds


@dataclass(frozen=True)
class Curve:
    """One arm at several sizes."""

    family: str  # the arm's name without its size
    over: Over
    points: list[Point]
    fit: CurveFit | Refusal
    at: float  # its largest size: where the baseline is to match it
    match: Interval | Refusal | None  # times ``at`` that the baseline needs; None: it is the one
    extrapolated: bool  # what the baseline needs is above its own largest size


def families(results: Results) -> dict[str, list[Arm]]:
    """Name without size -> the arms that a ladder made of it; empty where its sizes cost the same,
    as of one that demands more and more knowledge."""
    found: dict[str, list[Arm]] = {}
    for arm in results.study.arms.values():
        if arm.size is not None:
            found.setdefault(arm.family, []).append(arm)
    for arms in found.values():
        if len({tuple(arm.cost.paper_train_flops.values()) for arm in arms}) > 1:
            return found
    return {}


def asked(
    results: Results,
    *,
    phase: str | None = None,
    source: str | None = None,
    baseline: str | None = None,
) -> Asked | None:
    """By default the loss at the study's end, on the first source that the phase trains on,
    against the arm of equal FLOPs, or else a dense one. None where no arm has a size, or no loss
    has been measured."""
    by_family = families(results)
    if not by_family or not results.sources:
        return None
    phase = phase or results.phases[-1]
    trained = [name for name in results.study.phases[phase].mixture if name in results.sources]
    matched = [name for name, arms in by_family.items() if any(arm.iso_flop for arm in arms)]
    dense = [name for name, arms in by_family.items() if not any(map(_has_memory, arms))]
    return Asked(
        phase,
        source or [*trained, *results.sources][0],
        baseline or [*matched, *dense, *by_family][0],
    )


def points(results: Results, question: Asked) -> dict[str, list[Point]]:
    """Family -> its sizes, that at least one seed has measured."""
    found = {
        family: [_point(results, question, arm) for arm in arms]
        for family, arms in families(results).items()
    }
    return {family: [p for p in sizes if p.losses] for family, sizes in found.items()}


def curves(results: Results, question: Asked) -> list[Curve]:
    """Every arm over FLOPs, then over seconds."""
    return results.once(("scaling", question), lambda: list(_curves(results, question)))


def _curves(results: Results, question: Asked) -> Iterator[Curve]:
    by_family = points(results, question)
    for over in OVERS:
        fits = {family: _fit(sizes, over) for family, sizes in by_family.items()}
        largest = {
            family: max((p.compute(over) or 0.0 for p in sizes), default=0.0)
            for family, sizes in by_family.items()
        }
        for family, sizes in by_family.items():
            at, match = largest[family], None
            if family != question.baseline:
                match = _match(fits, family, question.baseline, at)
            beyond = isinstance(match, Interval) and match.value * at > largest[question.baseline]
            yield Curve(family, over, sizes, fits[family], at, match, beyond)


def _fit(sizes: list[Point], over: Over) -> CurveFit | Refusal:
    known = {p.compute(over): list(p.losses.values()) for p in sizes}
    return fit_curve({compute: losses for compute, losses in known.items() if compute})


def _match(
    fits: dict[str, CurveFit | Refusal], family: str, baseline: str, at: float
) -> Interval | Refusal:
    mine, theirs = fits[family], fits[baseline]
    if isinstance(mine, Refusal):
        return mine
    if isinstance(theirs, Refusal):
        return Refusal(f"{baseline}: {theirs.reason}")
    return compute_to_match(mine, theirs, at)


def _point(results: Results, question: Asked, arm: Arm) -> Point:
    losses = {
        run.seed: run.at(question.phase).bits_per_byte.get(question.source, math.nan)
        for run in results.runs_of(arm.name)
    }
    flops = 0.0
    for phase in results.study.phases_of(arm.name):
        flops += arm.cost.paper_train_flops.get(phase, math.nan)
        if phase == question.phase:
            break
    return Point(
        arm.name,
        str(arm.size),
        flops if math.isfinite(flops) else None,
        training_sec(results, arm.name, question.phase),
        {seed: loss for seed, loss in losses.items() if math.isfinite(loss)},
    )


def _has_memory(arm: Arm) -> bool:
    return arm.shape is not None and arm.shape.memory is not None
