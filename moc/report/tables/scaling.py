"""Fitted curves of a ladder, and the compute that a baseline needs for an arm's loss."""

from __future__ import annotations

import math

from evals.statistics.scaling import CurveFit, Interval, Refusal
from moc.report.numbers.results import Results
from moc.report.numbers.scaling import OVERS, Asked, Curve, asked, curves, points
from moc.report.tables.cells import MISSING, table_of
from moc.report.tables.layout import Table
from moc.text import human

UNITS = {"FLOPs": "FLOP", "seconds": "s"}


def scaling(results: Results, question: Asked | None = None) -> Table | None:
    """One row per arm, over FLOPs and over seconds; None for a study without a ladder."""
    question = question or asked(results)
    if question is None:
        return None
    found = curves(results, question)
    rows = [_row(results, curve) for curve in found]
    header = ["over", "arm", "sizes", "α", "floor", "largest", "loss there", "compute to match"]
    refused = {
        f"{curve.family} over {curve.over}: {curve.fit.reason}."
        for curve in found
        if isinstance(curve.fit, Refusal)
    }
    notes = [
        "Floor + scale × compute^−α, Huber's loss of log residuals, [95% interval over seeds]. "
        f"Compute to match: how many times its compute at the largest size {question.baseline} "
        "needs for the loss there; (e): beyond its own largest size, extrapolated. FLOPs are those "
        "planned (paper accounting), seconds those of training, on the machine of the study.",
        *sorted(refused),
    ]
    caption = f"Loss on {question.source} after {question.phase}, in bits per byte, over compute"
    raw = [_raw(question, curve) for curve in found]
    return table_of(results, "scaling", caption, header, rows, num_keys=2, notes=notes, raw=raw)


def scaling_points(results: Results, question: Asked | None = None) -> Table | None:
    """What the curves go through; the CSV has every seed."""
    question = question or asked(results)
    if question is None:
        return None
    rows, raw = [], []
    for sizes in points(results, question).values():
        for point in sizes:
            mean = sum(point.losses.values()) / len(point.losses)
            cells = [_human(point.compute(over), UNITS[over]) for over in OVERS]
            rows.append([results.label(point.arm), *cells, f"{mean:.4f}", str(len(point.losses))])
            raw += [
                {"arm": point.arm, "size": point.size, "seed": seed, "flops": point.flops}
                | {"seconds": point.seconds, "bits_per_byte": loss}
                for seed, loss in point.losses.items()
            ]
    header = ["arm", "training FLOPs", "training time", "bits per byte", "seeds"]
    caption = f"Loss on {question.source} after {question.phase} at every size"
    return table_of(results, "scaling_points", caption, header, rows, raw=raw)


def _row(results: Results, curve: Curve) -> list[str]:
    label = curve.family + results.label(curve.points[0].arm).removeprefix(curve.points[0].arm)
    cells = [curve.over, label, str(len(curve.points))]
    largest = _human(curve.at, UNITS[curve.over])
    if not isinstance(curve.fit, CurveFit):
        return [*cells, MISSING, MISSING, largest, MISSING, _match(curve)]
    exponent, floor = (_interval(found) for found in (curve.fit.exponent, curve.fit.floor))
    loss = f"{float(curve.fit.law.loss(curve.at)):.4f}"
    return [*cells, exponent, floor, largest, loss, _match(curve)]


def _match(curve: Curve) -> str:
    if curve.match is None:
        return "the baseline" if isinstance(curve.fit, CurveFit) else "no fit"
    if isinstance(curve.match, Refusal):
        return "no fit"
    if math.isinf(curve.match.value):
        least = f", at least {curve.match.low:.2f}" if math.isfinite(curve.match.low) else ""
        return f"none would do: its floor lies above{least}"
    return _interval(curve.match, 2) + " (e)" * curve.extrapolated


def _interval(found: Interval, digits: int = 3) -> str:
    if math.isnan(found.low):
        return f"{found.value:.{digits}f}"
    low, high = ("∞" if math.isinf(x) else f"{x:.{digits}f}" for x in found[1:])
    return f"{found.value:.{digits}f} [{low}, {high}]"


def _raw(question: Asked, curve: Curve) -> dict[str, object]:
    fit, match = curve.fit, curve.match
    whole = isinstance(fit, CurveFit)
    numbers: dict[str, object] = {}
    for name, found in (
        ("exponent", fit.exponent if isinstance(fit, CurveFit) else None),
        ("floor", fit.floor if isinstance(fit, CurveFit) else None),
        ("compute_to_match", match if isinstance(match, Interval) else None),
    ):
        for end in Interval._fields:
            key = name if end == "value" else f"{name}_{end}"
            numbers[key] = None if found is None else getattr(found, end)
    return {
        "over": curve.over,
        "arm": curve.family,
        "baseline": question.baseline,
        "phase": question.phase,
        "source": question.source,
        "sizes": len(curve.points),
        "largest": curve.at,
        **numbers,
        "scale": fit.law.scale if isinstance(fit, CurveFit) else None,
        "scale_at": fit.law.unit if isinstance(fit, CurveFit) else None,
        "extrapolated": curve.extrapolated,
        "refused": "" if whole else fit.reason if isinstance(fit, Refusal) else "",
    }


def _human(value: float | None, unit: str) -> str:
    return human(value, unit) if value else MISSING
