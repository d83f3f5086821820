"""Score curves: every seed thin, and their mean."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

from moc.report.figures.drawing import GREY, colour, mark_phases, panels_of
from moc.report.numbers.records import Run
from moc.report.numbers.results import Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

BASELINE = {"baseline": "--"}
Curve = Sequence[tuple[float, float]]


def panels_over_tokens(
    results: Results, titles: Sequence[str], unit: str
) -> tuple[Canvas, list[Axes]]:
    """A canvas, and a panel for each of ``titles`` on the axis of training tokens, with phases."""
    from matplotlib.ticker import EngFormatter

    canvas, panels = panels_of(len(titles), share_y=True, columns=2, height=2.1)
    for axes, title in zip(panels, titles, strict=True):
        mark_phases(axes, results)
        axes.set_title(title, pad=15)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    for axes in panels[::2]:
        axes.set_ylabel(unit)
    for axes in panels[-2:]:
        axes.set_xlabel("training tokens")
    return canvas, panels


def draw_curves(axes: Axes, curves: Sequence[Curve], index: int, *, scale: float = 100) -> None:
    """Every seed thin, and their mean where all of them were scored."""
    for curve in curves if len(curves) > 1 else ():
        heights = [scale * y for _, y in curve]
        axes.plot(
            [x for x, _ in curve], heights, color=colour(index), linewidth=0.6, alpha=0.45, zorder=2
        )
    mean = mean_curve(curves)
    xs, ys = [x for x, _ in mean], [scale * y for _, y in mean]
    axes.plot(xs, ys, color=colour(index), linewidth=1.6, zorder=3)


def mean_curve(curves: Sequence[Curve]) -> Curve:
    """Where all of them have a point."""
    known = [dict(curve) for curve in curves]
    shared = sorted(set(known[0]).intersection(*known[1:])) if known else []
    return [(x, statistics.fmean(curve[x] for curve in known)) for x in shared]


def followed(run: Run, metric: str) -> Curve:
    """What was logged of ``trajectory/<metric>``, by training tokens."""
    tokens, values = run.series(f"trajectory/{metric}")
    return sorted(dict(zip(tokens, values, strict=True)).items())


def draw_baseline(axes: Axes, results: Results, task: str) -> None:
    """Of ``task``: the larger of chance and majority, as a line."""
    found = (results.score(arm, b, task) for arm in results.arms for b in results.boundaries)
    score = next((score for score in found if score), None)
    if score:
        axes.axhline(100 * score.baseline, color=GREY, linewidth=1, linestyle="--", zorder=1)


def seeds_text(results: Results) -> str:
    """What ``draw_curves`` has drawn, for the caption."""
    return " Thin lines: seeds; thick: their mean." if len(results.seeds) > 1 else ""
