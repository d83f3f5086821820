"""Scores while a copy of a boundary's model is trained again."""

from __future__ import annotations

from moc.report.figures.curves import BASELINE, draw_baseline, draw_curves, seeds_text
from moc.report.figures.drawing import (
    Figure,
    colour,
    finish,
    footnote,
    legend_above,
    panels_of,
)
from moc.report.numbers.probes import probed
from moc.report.numbers.results import Results


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
        draw_baseline(axes, results, task)
        taught = str(results.taught_task(task))
        for index, arm in enumerate(results.arms):
            found = curves[task, arm]
            draw_curves(axes, found, index)
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
        f"Probe {name}: a copy of the model after {boundary} is trained again."
        f"{seeds_text(results)} "
        "Triangles at the right: the score right after the phase that taught the task, on all of "
        "its items (hollow: not distinguishable from its baseline)."
    )
    alt = f"Scores against the tokens of probe {name}, one line per arm"
    return finish(canvas, f"probe_{name}_{boundary}", caption, alt)
