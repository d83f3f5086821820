"""How scores went: along training, and old against new."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from moc.report.figures.curves import (
    BASELINE,
    Curve,
    draw_baseline,
    draw_curves,
    followed,
    mean_curve,
    panels_over_tokens,
    seeds_text,
)
from moc.report.figures.drawing import (
    GREY,
    Figure,
    colour,
    finish,
    footnote,
    legend_above,
    marker,
    panels_of,
)
from moc.report.numbers.effects import kept_and_learned
from moc.report.numbers.results import Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def trajectories(results: Results) -> Figure | None:
    """One panel per task: its score along all phases, on the axis of training tokens."""
    tasks = [t for t in results.tasks if any(followed(run, t) for run in results.runs.values())]
    if not tasks:
        return None
    canvas, panels = panels_over_tokens(results, tasks, "items correct (%)")
    for axes, task in zip(panels, tasks, strict=True):
        draw_baseline(axes, results, task)
        for index, arm in enumerate(results.arms):
            curves = [curve for run in results.runs_of(arm) if (curve := followed(run, task))]
            draw_curves(axes, curves, index)
            _draw_boundaries(axes, results, curves, index, arm, task)
        axes.set_ylim(-3, 103)
    legend_above(canvas, results, lines=BASELINE)
    footnote(canvas, results)
    caption = (
        "Scores of the subset that is followed while phases train, on one axis of training tokens; "
        f"dashed lines: ends of phases.{seeds_text(results)} Markers: boundaries; hollow where the "
        "boundary's full score is not distinguishable from its baseline (the larger of chance and "
        "majority)."
    )
    return finish(canvas, "trajectories", caption, "Scores along all phases, one line per arm")


def learned_forgotten(results: Results) -> Figure | None:
    """One panel per earlier task: what was kept of it against what the last phase taught: a task,
    or else the loss on a source."""
    last = results.boundaries[-1]
    new = [task for task in results.tasks if results.taught_task(task) == last]
    new = new or [source for source in results.sources if results.taught(source) == last]
    pairs = [(old, _partner(old, new)) for old in results.earlier_tasks] if new else []
    points = {
        (old, arm): kept_and_learned(results, arm, old, other)
        for old, other in pairs
        for arm in results.arms
    }
    pairs = [pair for pair in pairs if any(points[pair[0], arm] for arm in results.arms)]
    if not pairs:
        return None
    canvas, panels = panels_of(len(pairs), share_y=False, height=2.5)
    for axes, (old, other) in zip(panels, pairs, strict=True):
        for index, arm in enumerate(results.arms):
            found = points[old, arm]
            ends = [results.score(arm, last, task) for task in (other, old)]
            near = any(score is not None and score.near for score in ends)
            face = "white" if near else colour(index)
            style: dict[str, Any] = {"color": colour(index), "marker": marker(index)}
            style |= {"linestyle": "none", "markerfacecolor": face}
            xs, ys = [x for x, _ in found], [y for _, y in found]
            axes.plot(xs, ys, **style, markersize=4, alpha=0.7)
            if len(found) > 1:
                means = [statistics.fmean(xs)], [statistics.fmean(ys)]
                axes.plot(*means, **style, markersize=8, alpha=0.9)
        axes.axhline(100, color=GREY, linewidth=1, linestyle=":", zorder=1)
        axes.axhline(0, color=GREY, linewidth=1, linestyle="--", zorder=1)
        axes.set_title(old)
        unit = "%" if other in results.tasks else "bits per byte"
        axes.set_xlabel(f"{other} after {last} ({unit})", fontsize=7.5)
        axes.margins(0.12)
        if other not in results.tasks:
            axes.invert_xaxis()  # of losses, less is better
    panels[0].set_ylabel("retention (%)")
    for axes in panels[3::3]:
        axes.set_ylabel("retention (%)")
    legend_above(canvas, results)
    footnote(canvas, results)
    caption = (
        "What was kept against what was learned: share of an earlier score above its baseline that "
        f"is left after {last}, against the score on what {last} taught. Better is up and to the "
        "right. Small markers: seeds; large: their mean. Hollow: one of the two scores is not "
        "distinguishable from its baseline. Arms that had not clearly learned the earlier task "
        "have nothing to retain and are left out, as are single seeds at or below its baseline "
        "(and from the mean). Axes differ."
    )
    alt = "Retention of earlier tasks against the score on new ones, one point per seed"
    return finish(canvas, "learned_forgotten", caption, alt)


def _draw_boundaries(
    axes: Axes, results: Results, curves: Sequence[Curve], index: int, arm: str, task: str
) -> None:
    mean = dict(mean_curve(curves))
    positions = [("start", 0), *results.phase_ends(arm)]
    for boundary, tokens in positions:
        score = results.score(arm, boundary, task)
        if score is None or tokens not in mean:
            continue
        axes.plot(
            tokens,
            100 * mean[tokens],
            marker=marker(index),
            markersize=4,
            color=colour(index),
            markerfacecolor="white" if score.near else colour(index),
            zorder=4,
            clip_on=False,
        )


def _partner(old: str, new: Sequence[str]) -> str:
    """The new task most like ``old``: the same of another source, or else of the same kind."""
    base = old.partition(".")[0]
    kind = base.rpartition("_")[2]
    same = [task for task in new if task.partition(".")[0] == base]
    like = [task for task in new if task.partition(".")[0].rpartition("_")[2] == kind]
    return [*same, *like, *new][0]
