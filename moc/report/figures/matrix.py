"""Scores as a matrix, and what is behind them: the options picked, and items that changed sides."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from moc.report.figures.drawing import (
    GREY,
    INK,
    WIDTH,
    Figure,
    canvas_of,
    finish,
    footnote,
    panels_of,
    place_legend,
)
from moc.report.numbers import effects
from moc.report.numbers.results import NEAR, NEAR_NOTE, Results

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas
    from matplotlib.patches import Patch

LOST, GAINED = "#D55E00", "#009E73"
ROW = 0.33  # inches of an arm in a heat map


def r_matrix(results: Results) -> Figure | None:
    """One panel per task: arms by boundaries, with intervals in the cells."""
    if not results.tasks:
        return None
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap

    columns = 2 if len(results.boundaries) <= 5 else 1
    height = ROW * len(results.arms) + 0.6
    canvas, panels = panels_of(len(results.tasks), share_y=False, columns=columns, height=height)
    canvas.set_figheight(canvas.get_figheight() - 0.4)  # no legend above
    canvas.set_layout_engine("constrained", wspace=0.06)
    shades = ListedColormap(colormaps["Blues"].resampled(256)(range(0, 220)))
    last = len(results.boundaries) - 1
    for place, (axes, task) in enumerate(zip(panels, results.tasks, strict=True)):
        baseline = ""
        for row, arm in enumerate(results.arms):
            for column, boundary in enumerate(results.boundaries):
                score = results.score(arm, boundary, task)
                if score is None:
                    axes.text(column, row, "—", ha="center", va="center", color=GREY)
                    continue
                baseline = f"   (baseline {100 * score.baseline:.1f})"
                face = shades(score.value)
                axes.add_patch(_cell(column, row, face))
                ink = "white" if score.value > 0.62 else "black"
                near = f"{NEAR} " * score.near
                axes.text(
                    column,
                    row - 0.16,
                    f"{near}{100 * score.value:.1f}",
                    ha="center",
                    va="center",
                    color=ink,
                    fontsize=8,
                )
                axes.text(
                    column,
                    row + 0.24,
                    f"[{100 * score.low:.0f}, {100 * score.high:.0f}]",
                    ha="center",
                    va="center",
                    color=ink,
                    fontsize=6,
                )
        axes.set_title(task, pad=4)
        axes.set_title(baseline, loc="right", fontsize=7, fontweight="normal", color=INK, pad=4)
        axes.set_xlim(-0.5, last + 0.5)
        axes.set_ylim(len(results.arms) - 0.5, -0.5)
        axes.set_xticks(range(last + 1), results.boundaries)
        labels = [results.label(arm) for arm in results.arms]
        axes.set_yticks(range(len(labels)), labels if place % columns == 0 else [""] * len(labels))
        axes.tick_params(length=0)
        axes.grid(False)
        axes.spines[:].set_visible(False)
    footnote(canvas, results)
    over = "items of the one seed" if len(results.seeds) == 1 else "seeds and items"
    caption = (
        f"R: items correct at each boundary, %, with 95% intervals over {over}. {NEAR_NOTE}. "
        "Colours go from 0 to 100%."
    )
    alt = "Heat map of the score of every arm at every boundary, one panel per task"
    return finish(canvas, "r_matrix", caption, alt)


def predictions(results: Results) -> Figure | None:
    """One row per choice task, one panel per boundary: which options every arm picked."""
    from matplotlib import colormaps

    tasks = [task for task in results.tasks if _targets(results, task)]
    if not tasks:
        return None
    bars = len(results.arms) + 1
    canvas = canvas_of(WIDTH, len(tasks) * (0.19 * bars + 0.55) + 0.2)
    columns = len(results.boundaries)
    grid = canvas.subplots(len(tasks), columns, squeeze=False, sharex=True)
    for row, task in enumerate(tasks):
        targets = _targets(results, task)
        shades = colormaps["cividis"].resampled(max(2, len(targets)))
        for column, boundary in enumerate(results.boundaries):
            axes = grid[row][column]
            shares = [_shares(results, arm, boundary, task) for arm in results.arms]
            for place, counts in enumerate([targets, *shares]):
                left, commonest = 0.0, max(counts.values(), default=0.0)
                for index, label in enumerate(targets):
                    share = counts.get(label, 0.0)
                    face = shades(index)
                    axes.barh(place, share, left=left, height=0.8, color=face, edgecolor="white")
                    dark = sum(face[:3]) < 1.6
                    words = label if place == 0 else f"{share:.0f}" * (share == commonest)
                    if words and share > 4 * len(words):
                        axes.text(
                            left + share / 2,
                            place,
                            words,
                            ha="center",
                            va="center",
                            fontsize=6.5,
                            color="white" if dark else "black",
                            fontweight="bold" if place == 0 else "normal",
                        )
                    left += share
            axes.set_xlim(0, 100)
            axes.set_ylim(bars - 0.5, -0.5)
            labels = ["right answers", *(results.label(arm) for arm in results.arms)]
            axes.set_yticks(range(bars), labels if column == 0 else [""] * bars)
            axes.tick_params(length=0)
            axes.grid(False)
            axes.spines[:].set_visible(False)
            axes.set_title(f"{task}\n{boundary}" if column == 0 else boundary, fontsize=8)
    for axes in grid[-1]:
        axes.set_xlabel("% of items", fontsize=7.5)
    footnote(canvas, results)
    caption = (
        "Options picked in choice tasks at each boundary, over all seeds; above, how often each is "
        "right. Numbers: share of the commonest pick. A model that always picks the same option "
        "scores the share of items where it is right, whatever it knows."
    )
    alt = "Stacked bars of the options picked, per arm, boundary and choice task"
    return finish(canvas, "predictions", caption, alt)


def churn(results: Results) -> Figure | None:
    """One panel per task: items that turned wrong, and right, since the task was taught."""
    last = results.boundaries[-1]
    found = {
        (task, arm): effects.churned(results, arm, task, str(results.taught_task(task)), last)
        for task in results.earlier_tasks
        for arm in results.arms
    }
    tasks = [t for t in results.earlier_tasks if any(found[t, arm] for arm in results.arms)]
    if not tasks:
        return None
    highs = [
        part.high for c in found.values() if c for part in (c.right_to_wrong, c.wrong_to_right)
    ]
    reach = 105 * max(highs)
    height = 0.24 * len(results.arms) + 0.75
    canvas, panels = panels_of(len(tasks), share_y=True, height=height)
    for axes, task in zip(panels, tasks, strict=True):
        axes.set_xlim(-reach, reach)
        for row, arm in enumerate(results.arms):
            entry = found[task, arm]
            if entry is None:
                continue
            for part, sign, face in (
                (entry.right_to_wrong, -1, LOST),
                (entry.wrong_to_right, 1, GAINED),
            ):
                value = 100 * sign * part.value
                axes.barh(row, value, height=0.62, color=face, alpha=0.8, zorder=2)
                ends = [100 * sign * part.low, 100 * sign * part.high]
                axes.plot(ends, [row, row], color=INK, linewidth=0.9, zorder=3)
        axes.axvline(0, color=INK, linewidth=0.8, zorder=3)
        axes.set_title(task)
        axes.xaxis.set_major_formatter(lambda value, _: f"{abs(value):g}")
        axes.set_yticks(range(len(results.arms)), [results.label(arm) for arm in results.arms])
        axes.set_ylim(len(results.arms) - 0.5, -0.5)
        axes.grid(False, axis="y")
        axes.set_xlabel(f"% of items, {results.taught_task(task)} → {last}", fontsize=7.5)
    _legend(canvas, {"right → wrong": LOST, "wrong → right": GAINED})
    footnote(canvas, results)
    caption = (
        f"Items that changed sides between the boundary after a task was taught and {last}, with "
        "95% intervals. A score that stays the same may hide as much forgetting as learning."
    )
    alt = "Bars of items that turned from right to wrong and back, per arm and task"
    return finish(canvas, "churn", caption, alt)


def _cell(column: int, row: int, face: tuple[float, float, float, float]) -> Patch:
    from matplotlib.patches import Rectangle

    return Rectangle((column - 0.48, row - 0.47), 0.96, 0.94, facecolor=face, linewidth=0)


def _legend(canvas: Canvas, faces: dict[str, str]) -> None:
    from matplotlib.patches import Patch

    handles = [Patch(color=face, alpha=0.8, label=label) for label, face in faces.items()]
    place_legend(canvas, handles)


def _targets(results: Results, task: str) -> dict[str, float]:
    """Option -> % of items where it is right; empty for a task without options."""
    for run in results.runs.values():
        for at in run.boundaries.values():
            if task in at.tasks and (counts := at.tasks[task].targets):
                return _percent(counts)
    return {}


def _shares(results: Results, arm: str, boundary: str, task: str) -> dict[str, float]:
    total: dict[str, int] = {}
    for run in results.runs_of(arm):
        score = run.at(boundary).tasks.get(task)
        for label, number in score.predictions.items() if score else ():
            total[label] = total.get(label, 0) + number
    return _percent(total)


def _percent(counts: Mapping[str, int]) -> dict[str, float]:
    total = sum(counts.values())
    return {label: 100 * number / total for label, number in counts.items()} if total else {}
