"""How much of every score lives in the bank."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moc.report.figures.drawing import (
    GREY,
    INK,
    PALETTE,
    Figure,
    finish,
    footnote,
    panels_of,
    place_legend,
    wrapped,
)
from moc.report.numbers.controls import controlled_arms, controlled_boundaries, score_under
from moc.report.numbers.effects import control_names
from moc.report.numbers.results import Results

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

AS_IT_IS = "as it is"


def controls(results: Results) -> Figure | None:
    """One panel per task: scores at the last boundary, as they are and under every control."""
    reached = controlled_boundaries(results)
    if not reached or not results.tasks:  # without tasks the table says it all, in bits per byte
        return None
    boundary = reached[-1]
    names, arms = control_names(results, boundary), controlled_arms(results, boundary)
    faces = [GREY, *(PALETTE[index % len(PALETTE)] for index in range(len(names)))]
    bars = [(AS_IT_IS, ""), *((name, name) for name in names)]
    columns = 3 if len(arms) * len(bars) <= 8 else 2
    canvas, panels = panels_of(len(results.tasks), share_y=True, columns=columns, height=2.1)
    width = 0.84 / len(bars)
    for axes, task in zip(panels, results.tasks, strict=True):
        for group, arm in enumerate(arms):
            for place, (_, control) in enumerate(bars):
                score = score_under(results, arm, task, boundary, control)
                if score is None:
                    continue
                x = group + width * (place - (len(bars) - 1) / 2)
                axes.bar(
                    x,
                    100 * score.value,
                    0.92 * width,
                    facecolor="white" if score.near else faces[place],
                    edgecolor=faces[place],
                    linewidth=1,
                    zorder=2,
                )
                axes.plot(
                    [x, x],
                    [100 * score.low, 100 * score.high],
                    color=INK,
                    linewidth=0.9,
                    zorder=3,
                )
                level = 100 * score.baseline
                axes.plot(
                    [group - 0.46, group + 0.46],
                    [level, level],
                    color=INK,
                    linewidth=0.8,
                    linestyle="--",
                    zorder=3,
                )
        axes.set_title(task)
        axes.set_xticks(range(len(arms)), [wrapped(results.label(arm)) for arm in arms])
        axes.grid(False, axis="x")
        axes.set_ylim(0, 103)
    for axes in panels[::columns]:
        axes.set_ylabel("items correct (%)")
    _legend(canvas, [name for name, _ in bars], faces)
    footnote(canvas, results, *arms)
    caption = (
        f"Scores after {boundary} as they are and under each control, on the same items, with 95% "
        "intervals. Knockout: rows of the bank zeroed. Bank swap: the bank of an earlier "
        "boundary. Dashed: the baseline, the larger of chance and majority; hollow bars cannot be "
        "told from it."
    )
    alt = "Bars of the score as it is and under each control, per arm and task"
    return finish(canvas, "controls", caption, alt)


def _legend(canvas: Canvas, names: list[str], faces: list[str]) -> None:
    from matplotlib.patches import Patch

    handles = [Patch(color=face, label=name) for name, face in zip(names, faces, strict=True)]
    place_legend(canvas, handles)
