"""How a study's arms were tuned: what ``moc tune`` left of it in the study's folder."""

from __future__ import annotations

import math
from statistics import fmean
from typing import Any, NamedTuple, TypeGuard

from moc.errors import ConfigError
from moc.report.numbers.read import read_tuning
from moc.report.numbers.results import Results


class Tuned(NamedTuple):
    """Of one arm."""

    arm: str
    chosen: dict[str, Any]  # axis -> value
    at_edge: list[str]  # axes on which the choice is the first or last that was tried
    tokens: int  # that its trials trained on
    points: list[dict[str, Any]]  # of the trials that were not pruned
    metrics: list[float]  # bits per byte, over seeds; infinite where training diverged
    pruned: list[dict[str, Any]]  # points of trials that ended early: they have no such metric


class Tuning(NamedTuple):
    axes: dict[str, Any]  # values, or low, high and log of a range
    metric: str
    sampler: str
    asked: int | None  # trials of every arm; None: a grid
    seeds: list[int]
    budget: float  # share of each phase's tokens
    arms: list[Tuned]


def tuning(results: Results) -> Tuning | None:
    """None for a study whose arms were not tuned, or whose record of it cannot be read (which is
    then said with what is damaged)."""
    return results.once("tuning", lambda: _read(results))


def curve(arm: Tuned, axis: str) -> list[tuple[float, float]]:
    """Metric over ``axis``, the other axes where the arm's choice has them; numbers alone."""
    found = {}
    for point, metric in zip(arm.points, arm.metrics, strict=True):
        others = {key: value for key, value in point.items() if key != axis}
        chosen = {key: value for key, value in arm.chosen.items() if key != axis}
        if others == chosen and is_number(value := point.get(axis)):
            found[float(value)] = metric
    return sorted((x, y) for x, y in found.items() if math.isfinite(y))


def cloud(arm: Tuned, axis: str) -> list[tuple[float, float]]:
    """Metric over ``axis``, wherever the other axes are; numbers alone."""
    pairs = [
        (point.get(axis), metric) for point, metric in zip(arm.points, arm.metrics, strict=True)
    ]
    return sorted((float(x), y) for x, y in pairs if is_number(x) and math.isfinite(y))


def is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _read(results: Results) -> Tuning | None:
    try:
        raw = read_tuning(results.dir)
    except ConfigError as error:
        results.damaged.append(str(error))
        return None
    if not raw:
        return None
    arms = []
    for name, arm in raw["arms"].items():
        whole = [trial for trial in arm["trials"] if trial.get("state") != "pruned"]
        arms.append(
            Tuned(
                name,
                arm["chosen"],
                arm["at_edge"],
                arm["tokens"],
                [trial["point"] for trial in whole],
                [fmean(trial["metric"]) for trial in whole],
                [trial["point"] for trial in arm["trials"] if trial not in whole],
            )
        )
    sampler, asked = raw.get("sampler", "grid"), raw.get("asked")
    return Tuning(raw["axes"], raw["metric"], sampler, asked, raw["seeds"], raw["budget"], arms)
