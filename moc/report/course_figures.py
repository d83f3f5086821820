"""How scores went: along training, old against new, and when a copy is trained again."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from moc.report.drawing import (
    GREY,
    Figure,
    colour,
    finish,
    footnote,
    legend_above,
    mark_phases,
    marker,
    panels_of,
)
from moc.report.effects import recorded
from moc.report.knowledge import probed
from moc.report.results import Results
from moc.report.runs import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BASELINE = {"baseline": "--"}
Curve = Sequence[tuple[float, float]]


def trajectories(results: Results) -> Figure | None:
    """One panel per task: its score along all phases, on the axis of training tokens."""
    from matplotlib.ticker import EngFormatter

    tasks = [t for t in results.tasks if any(_followed(run, t) for run in results.runs.values())]
    if not tasks:
        return None
    canvas, panels = panels_of(len(tasks), share_y=True, columns=2, height=2.1)
    for axes, task in zip(panels, tasks, strict=True):
        _baseline(axes, results, task)
        for index, arm in enumerate(results.arms):
            curves = [curve for run in results.runs_of(arm) if (curve := _followed(run, task))]
            _draw(axes, curves, index)
            _draw_boundaries(axes, results, curves, index, arm, task)
        mark_phases(axes, results)
        axes.set_title(task, pad=15)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.set_ylim(-3, 103)
    for axes in panels[::2]:
        axes.set_ylabel("items correct (%)")
    for axes in panels[-2:]:
        axes.set_xlabel("training tokens")
    legend_above(canvas, results, lines=BASELINE)
    footnote(canvas, results)
    caption = (
        "Scores of the subset that is followed while phases train, on one axis of training tokens; "
        f"dashed lines: ends of phases.{_seeds(results)} Markers: boundaries; hollow where the "
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
        (old, arm): _kept_and_learned(results, arm, old, other)
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


def probes(results: Results) -> list[Figure]:
    """One figure per probe and boundary: scores while a copy is trained again."""
    drawn = (_probe(results, name, boundary) for name, boundary in probed(results))
    return [figure for figure in drawn if figure is not None]


def _probe(results: Results, name: str, boundary: str) -> Figure | None:
    from matplotlib.ticker import EngFormatter

    earlier = results.phases[: results.phases.index(boundary)]
    curves = {
        (task, arm): [
            curve
            for run in results.runs_of(arm)
            for probe in run.probes
            if (probe.name, probe.boundary) == (name, boundary) and (curve := probe.curve(task))
        ]
        for task in results.tasks
        if results.taught_task(task) in earlier
        for arm in results.arms
    }
    tasks = list(dict.fromkeys(task for (task, _), found in curves.items() if found))
    if not tasks:
        return None
    canvas, panels = panels_of(len(tasks), share_y=True)
    for axes, task in zip(panels, tasks, strict=True):
        _baseline(axes, results, task)
        taught = str(results.taught_task(task))
        for index, arm in enumerate(results.arms):
            found = curves[task, arm]
            _draw(axes, found, index)
            score = results.score(arm, taught, task)
            if found and score:
                end = max(tokens for curve in found for tokens, _ in curve)
                axes.plot(
                    1.04 * end,
                    100 * score.value,
                    marker="<",
                    markersize=5,
                    color=colour(index),
                    markerfacecolor="white" if score.near else colour(index),
                    clip_on=False,
                )
        axes.set_title(task)
        axes.set_xlabel("tokens of the probe")
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.set_ylim(-3, 103)
    panels[0].set_ylabel("items correct (%)")
    legend_above(canvas, results, lines=BASELINE)
    footnote(canvas, results)
    caption = (
        f"Probe {name}: a copy of the model after {boundary} is trained again.{_seeds(results)} "
        "Triangles at the right: the score right after the phase that taught the task, on all of "
        "its items (hollow: not distinguishable from its baseline)."
    )
    alt = f"Scores against the tokens of probe {name}, one line per arm"
    return finish(canvas, f"probe_{name}_{boundary}", caption, alt)


def _draw(axes: Axes, curves: Sequence[Curve], index: int) -> None:
    """Every seed thin, and their mean where all of them were scored."""
    for curve in curves if len(curves) > 1 else ():
        heights = [100 * y for _, y in curve]
        axes.plot(
            [x for x, _ in curve], heights, color=colour(index), linewidth=0.6, alpha=0.45, zorder=2
        )
    mean = _mean(curves)
    xs, ys = [x for x, _ in mean], [100 * y for _, y in mean]
    axes.plot(xs, ys, color=colour(index), linewidth=1.6, zorder=3)


def _mean(curves: Sequence[Curve]) -> Curve:
    known = [dict(curve) for curve in curves]
    shared = sorted(set(known[0]).intersection(*known[1:])) if known else []
    return [(x, statistics.fmean(curve[x] for curve in known)) for x in shared]


def _draw_boundaries(
    axes: Axes, results: Results, curves: Sequence[Curve], index: int, arm: str, task: str
) -> None:
    mean = dict(_mean(curves))
    places = [("start", 0), *results.phase_ends(arm)]
    for boundary, tokens in places:
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


def _followed(run: Run, task: str) -> Curve:
    tokens, values = run.series(f"trajectory/{task}")
    return sorted(dict(zip(tokens, values, strict=True)).items())


def _baseline(axes: Axes, results: Results, task: str) -> None:
    found = (results.score(arm, b, task) for arm in results.arms for b in results.boundaries)
    score = next((score for score in found if score), None)
    if score:
        axes.axhline(100 * score.baseline, color=GREY, linewidth=1, linestyle="--", zorder=1)


def _partner(old: str, new: Sequence[str]) -> str:
    """The new task most like ``old``: the same of another source, or else of the same kind."""
    base = old.partition(".")[0]
    kind = base.rpartition("_")[2]
    same = [task for task in new if task.partition(".")[0] == base]
    like = [task for task in new if task.partition(".")[0].rpartition("_")[2] == kind]
    return [*same, *like, *new][0]


def _kept_and_learned(
    results: Results, arm: str, old: str, other: str
) -> list[tuple[float, float]]:
    """What was learned and % retained, of every seed; empty where there was nothing to retain."""
    taught, last = str(results.taught_task(old)), results.boundaries[-1]
    score = results.score(arm, taught, old)
    if score is None or score.near:
        return []
    before, after = (recorded(results, arm, boundary, old) for boundary in (taught, last))
    learned = {
        seed: 100 * value for seed, value in recorded(results, arm, last, other).items()
    } or {
        run.seed: run.evals[last]["bits_per_byte"][other]
        for run in results.runs_of(arm)
        if other in run.evals.get(last, {}).get("bits_per_byte", {})
    }
    return [
        (
            learned[seed],
            100 * (after[seed] - score.baseline) / (before[seed] - score.baseline),
        )
        for seed in before
        if seed in after and seed in learned and before[seed] > score.baseline
    ]


def _seeds(results: Results) -> str:
    return " Thin lines: seeds; thick: their mean." if len(results.seeds) > 1 else ""
