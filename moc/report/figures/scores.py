"""Scores at the boundaries."""

from __future__ import annotations

from moc.report.figures.drawing import (
    GREY,
    Figure,
    boundary_axis,
    colour,
    dodge,
    dots,
    finish,
    footnote,
    legend_above,
    marker,
    panels_of,
    single_seeds,
)
from moc.report.numbers.results import Results

BASELINES = {"chance": ":", "majority": "--"}  # line styles


def scores(results: Results) -> Figure | None:
    """One panel per task: score at every boundary with its interval and the baselines."""
    if not results.tasks:
        return None
    canvas, panels = panels_of(len(results.tasks), share_y=True)
    highest = 20.0
    for axes, task in zip(panels, results.tasks, strict=True):
        for index, arm in enumerate(results.arms):
            line = [results.score(arm, boundary, task) for boundary in results.boundaries]
            shift = dodge(index, len(results.arms))
            found = [(position + shift, score) for position, score in enumerate(line) if score]
            highest = max([highest, *(100 * score.high for _, score in found)])
            axes.errorbar(
                [position for position, _ in found],
                [100 * score.value for _, score in found],
                yerr=[
                    [100 * max(0.0, score.value - score.low) for _, score in found],
                    [100 * max(0.0, score.high - score.value) for _, score in found],
                ],
                color=colour(index),
                linewidth=1.3,
                elinewidth=0.9,
                zorder=3,
            )
            for position, score in found:
                axes.plot(
                    position,
                    100 * score.value,
                    marker=marker(index),
                    markersize=4,
                    color=colour(index),
                    markerfacecolor="white" if score.near else colour(index),
                    zorder=4,
                )
            positions = [position + shift for position in range(len(line))]
            single_seeds(axes, index, positions, _by_seed(results, arm, task))
            for _, score in found[:1]:
                for level, style in (
                    (score.chance, BASELINES["chance"]),
                    (score.majority, BASELINES["majority"]),
                ):
                    axes.axhline(100 * level, color=GREY, linewidth=1, linestyle=style, zorder=1)
        boundary_axis(axes, task, results.boundaries)
    panels[0].set_ylim(-2, min(103, 1.06 * highest))
    panels[0].set_ylabel("items correct (%)")
    legend_above(canvas, results, lines=BASELINES)
    footnote(canvas, results)
    over = "items" if len(results.seeds) == 1 else "seeds and items"
    caption = (
        f"Score at each boundary with 95% intervals over {over}. Hollow: not distinguishable "
        "from the larger of chance and majority. Points are shifted sideways for legibility."
        f"{dots(results)}"
    )
    return finish(canvas, "scores", caption, "Score per task at each boundary, one line per arm")


def _by_seed(results: Results, arm: str, task: str) -> list[list[float | None]]:
    """In percent, at every boundary."""
    found = [
        [run.at(boundary).tasks.get(task) for boundary in results.boundaries]
        for run in results.runs_of(arm)
    ]
    return [[None if score is None else 100 * score.value for score in line] for line in found]
