"""The figures of a report, drawn with matplotlib's Agg backend and no global state."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from moc.report.control_figures import controls
from moc.report.course_figures import learned_forgotten, probes, trajectories
from moc.report.drawing import (
    GREY,
    STYLE,
    WIDTH,
    Figure,
    boundary_axis,
    canvas_of,
    colour,
    dodge,
    finish,
    footnote,
    legend_above,
    log_axis,
    mark_phases,
    marker,
    panels_of,
)
from moc.report.matrix_figures import churn, predictions, r_matrix
from moc.report.results import Results
from moc.report.routing_figures import chapters, leakage, routed_runs
from moc.report.runs import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BASELINES = {"chance": ":", "majority": "--"}  # line styles
SMOOTHING = 5  # logged values in the moving mean of a loss curve


def all_figures(results: Results) -> list[Figure]:
    """Every figure that ``results`` have data for."""
    import matplotlib

    with matplotlib.rc_context({**matplotlib.rcParamsDefault, **STYLE, "backend": "Agg"}):
        figures = [r_matrix(results), scores(results), trajectories(results)]
        figures += [learned_forgotten(results), churn(results), predictions(results)]
        figures += [controls(results), *probes(results), bits_per_byte(results)]
        figures += [losses(results), leakage(results)]
        figures += [chapters(results, run) for run in routed_runs(results)]
    return [figure for figure in figures if figure is not None]


def losses(results: Results) -> Figure | None:
    """Training loss of every arm on one token axis, phases marked."""
    from matplotlib.ticker import EngFormatter

    canvas = canvas_of(WIDTH, 3.4)
    axes = canvas.subplots()
    single = len(results.seeds) == 1
    drawn: list[float] = []
    for index, arm in enumerate(results.arms):
        for run in results.runs_of(arm):
            for phase in results.phases:
                tokens, values = run.series(f"{phase}/train/loss")
                smooth = moving_mean(values, SMOOTHING)
                drawn += [value for value in smooth if math.isfinite(value)]
                width, alpha = (1.4, 1.0) if single else (0.7, 0.75)
                axes.plot(tokens, smooth, color=colour(index), linewidth=width, alpha=alpha)
    if not drawn:
        return None
    if max(drawn) > 4 * min(drawn) > 0:
        log_axis(axes, min(drawn), max(drawn))
    mark_phases(axes, results)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlabel("training tokens")
    axes.set_ylabel("training loss (nats per token)")
    legend_above(canvas, results)
    footnote(canvas, results)
    seeds = f"seed {results.seeds[0]}" if single else "one line per seed"
    caption = (
        f"Training loss of all arms, mean over {SMOOTHING} neighbouring logged values of a phase; "
        f"{seeds}. Dashed lines: ends of phases."
    )
    alt = "Training loss against training tokens, one colour per arm"
    return finish(canvas, "losses", caption, alt)


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
            found = [(place + shift, score) for place, score in enumerate(line) if score]
            highest = max([highest, *(100 * score.high for _, score in found)])
            axes.errorbar(
                [place for place, _ in found],
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
            for place, score in found:
                axes.plot(
                    place,
                    100 * score.value,
                    marker=marker(index),
                    markersize=4,
                    color=colour(index),
                    markerfacecolor="white" if score.near else colour(index),
                    zorder=4,
                )
            runs = results.runs_of(arm)
            _single_seeds(axes, index, shift, runs, results.boundaries, "tasks", task)
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
        f"{_dots(results)}"
    )
    return finish(canvas, "scores", caption, "Score per task at each boundary, one line per arm")


def bits_per_byte(results: Results) -> Figure | None:
    """One panel per source: validation bits per byte after every phase."""
    if not results.sources:
        return None
    canvas, panels = panels_of(len(results.sources), share_y=False)
    for axes, source in zip(panels, results.sources, strict=True):
        for index, arm in enumerate(results.arms):
            line = [results.bits_per_byte(arm, phase, source) for phase in results.phases]
            shift = dodge(index, len(results.arms))
            found = [(place + shift, value) for place, value in enumerate(line) if value]
            axes.plot(
                [place for place, _ in found],
                [value for _, value in found],
                color=colour(index),
                marker=marker(index),
                markersize=4,
                linewidth=1.3,
            )
            _single_seeds(
                axes, index, shift, results.runs_of(arm), results.phases, "bits_per_byte", source
            )
        boundary_axis(axes, source, results.phases)
    panels[0].set_ylabel("bits per byte")
    legend_above(canvas, results)
    footnote(canvas, results)
    caption = (
        "Bits per byte of each source's validation text after each phase; lower is better. "
        f"Vertical axes differ. The untrained start is in the table only.{_dots(results)}"
    )
    return finish(canvas, "bits_per_byte", caption, "Validation bits per byte, one line per arm")


def _single_seeds(
    axes: Axes,
    index: int,
    shift: float,
    runs: Sequence[Run],
    boundaries: Sequence[str],
    part: str,
    name: str,
) -> None:
    """A dot for each of several seeds: what a mean and the interval over items do not show."""
    for run in runs if len(runs) > 1 else ():
        for place, boundary in enumerate(boundaries):
            value = run.evals.get(boundary, {}).get(part, {}).get(name)
            if value is not None:
                height = 100 * value["value"] if part == "tasks" else value
                axes.plot(place + shift, height, ".", color=colour(index), markersize=3, alpha=0.5)


def _dots(results: Results) -> str:
    return " Small dots: single seeds." if len(results.seeds) > 1 else ""


def moving_mean(values: Sequence[float], window: int) -> list[float]:
    """Centred mean over ``window`` values (odd), over fewer near the ends; NaN spreads."""
    spans = []
    for index in range(len(values)):
        half = min(index, len(values) - 1 - index, window // 2)
        spans.append(values[index - half : index + half + 1])
    return [sum(span) / len(span) for span in spans]
