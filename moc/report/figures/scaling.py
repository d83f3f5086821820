"""Loss over training compute: one curve per arm of a ladder."""

from __future__ import annotations

import numpy as np

from evals.statistics.scaling import CurveFit
from moc.report.figures.drawing import (
    Figure,
    colour,
    finish,
    footnote,
    marker,
    panels_of,
    place_legend,
)
from moc.report.numbers.results import Results
from moc.report.numbers.scaling import OVERS, Asked, asked, curves
from moc.report.numbers.scaling import Curve as ScalingCurve

TITLES = {"FLOPs": "training FLOPs (paper accounting)", "seconds": "seconds of training"}


def scaling(results: Results, question: Asked | None = None) -> Figure | None:
    """Every seed at every size, with the fitted curve and its 95% band where there is one."""
    from matplotlib.lines import Line2D

    question = question or asked(results)
    if question is None:
        return None
    found = [curve for curve in curves(results, question) if curve.at]
    overs = [over for over in OVERS if any(curve.over == over for curve in found)]
    if not overs:
        return None
    families = list(dict.fromkeys(curve.family for curve in found))
    canvas, panels = panels_of(len(overs), share_y=True, columns=2, height=3.0)
    for axes, over in zip(panels, overs, strict=True):
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.yaxis.set_minor_formatter("{x:g}")
        axes.yaxis.set_major_formatter("{x:g}")
        for curve in found:
            if curve.over == over:
                _draw(axes, curve, families.index(curve.family))
        axes.set_xlabel(TITLES[over])
    panels[0].set_ylabel("bits per byte")
    marks = [
        Line2D([], [], color=colour(index), marker=marker(index), markersize=4, label=family)
        for index, family in enumerate(families)
    ]
    place_legend(canvas, marks)
    footnote(canvas, results, *(point.arm for curve in found for point in curve.points))
    refused = [curve for curve in found if not isinstance(curve.fit, CurveFit)]
    caption = (
        f"Loss on {question.source} after {question.phase} over training compute: every seed at "
        "every size, the fitted saturating power law and its 95% band over seeds."
        + " A curve is missing where the data support none."
        * bool(refused)
    )
    alt = "Validation bits per byte against training compute, one curve per arm"
    return finish(canvas, "scaling", caption, alt)


def _draw(axes: object, curve: ScalingCurve, index: int) -> None:
    from matplotlib.axes import Axes

    assert isinstance(axes, Axes)
    for point in curve.points:
        if at := point.compute(curve.over):
            heights = list(point.losses.values())
            axes.plot(
                [at] * len(heights), heights, marker(index), color=colour(index), markersize=3
            )
    if not isinstance(curve.fit, CurveFit):
        return
    smallest = min(size for size, _ in curve.fit.design)
    grid = np.geomspace(smallest / 1.3, curve.at * 1.3, 60)
    axes.plot(grid, [float(curve.fit.law.loss(x)) for x in grid], color=colour(index), linewidth=1)
    if curve.fit.draws is not None:
        band = np.array([np.quantile(curve.fit.draws.loss(x), (0.025, 0.975)) for x in grid])
        axes.fill_between(grid, *band.T, color=colour(index), alpha=0.15, linewidth=0)
