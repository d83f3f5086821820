"""The figures of a report, drawn with matplotlib's Agg backend and no global state."""

from __future__ import annotations

import math
from collections.abc import Sequence

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
    legend_inside,
    log_axis,
    mark_phases,
    marker,
    panels_of,
)
from moc.report.results import Results, Run

SMOOTHING = 5  # logged values in the moving mean of a loss curve
MAX_COLUMNS = 128  # of a heat map; more chapters are averaged into this many
MAX_RATIO = 8  # the heat map's colours end at 1/8 and 8 times the uniform load


def all_figures(results: Results) -> list[Figure]:
    """Every figure that ``results`` have data for."""
    import matplotlib

    with matplotlib.rc_context({**matplotlib.rcParamsDefault, **STYLE, "backend": "Agg"}):
        figures = [losses(results), scores(results), bits_per_byte(results)]
        figures += [chapters(results, run) for run in _routed_runs(results)]
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
    legend_inside(axes, results)
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
            for _, score in found[:1]:
                for level, style in ((score.chance, ":"), (score.majority, "--")):
                    axes.axhline(100 * level, color=GREY, linewidth=1, linestyle=style, zorder=1)
        boundary_axis(axes, task, results.boundaries)
    panels[0].set_ylim(-2, min(103, 1.06 * highest))
    panels[0].set_ylabel("items correct (%)")
    legend_above(canvas, results, baselines=True)
    footnote(canvas, results)
    caption = (
        "Score at each boundary with 95% Wilson intervals. Hollow markers: not distinguishable "
        "from the larger of chance and majority. Points are shifted sideways for legibility."
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
        boundary_axis(axes, source, results.phases)
    panels[0].set_ylabel("bits per byte")
    legend_above(canvas, results, baselines=False)
    footnote(canvas, results)
    caption = (
        "Bits per byte of each source's validation text after each phase; lower is better. "
        "Vertical axes differ. The untrained start is in the table only."
    )
    return finish(canvas, "bits_per_byte", caption, "Validation bits per byte, one line per arm")


def chapters(results: Results, run: Run) -> Figure | None:
    """One heat map per phase: load of every routed chapter in every memory layer over uniform."""
    import numpy as np
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap, LogNorm

    label = results.label(run.arm)
    phases = [phase for phase in results.phases if run.last_windows(phase)]
    num_layers = max(len(run.last_windows(phase)) for phase in phases)
    canvas = canvas_of(WIDTH, len(phases) * (0.65 + 0.24 * num_layers) + 0.6)
    panels = list(canvas.subplots(len(phases), 1, squeeze=False, sharex=True).flat)
    # without the map's darkest ends, which would pass for the black of chapters never picked
    colours = ListedColormap(colormaps["PuOr_r"](np.linspace(0.1, 0.9, 256)))
    for axes, phase in zip(panels, phases, strict=True):
        windows = run.last_windows(phase)
        first = windows[0]["num_shared"]
        ratios = np.array([load_ratio(window["load"][first:]) for window in windows])
        per_column = math.ceil(ratios.shape[1] / MAX_COLUMNS)
        starts = range(0, ratios.shape[1], per_column)
        binned = np.stack([ratios[:, i : i + per_column].mean(axis=1) for i in starts], axis=1)
        left = first - 0.5
        image = axes.imshow(  # the colour bar below fits every panel: one norm
            np.ma.masked_equal(binned, 0),
            cmap=colours,
            norm=LogNorm(1 / MAX_RATIO, MAX_RATIO, clip=True),
            aspect="auto",
            interpolation="nearest",
            extent=(left, left + per_column * len(starts), len(windows), 0),
        )
        axes.set_facecolor("black")
        axes.grid(False)
        rows = [row + 0.5 for row in range(len(windows))]
        axes.set_yticks(rows, [str(window["layer"]) for window in windows])
        axes.set_ylabel("layer")
        axes.set_title(f"{label}, last {windows[0]['window_tokens']:,} tokens of {phase}")
    binning = "" if per_column == 1 else f" (mean of {per_column} per column)"
    panels[-1].set_xlabel(f"chapter{binning}")
    bar = canvas.colorbar(image, ax=panels, fraction=0.03, pad=0.015, extend="both")
    bar.set_ticks([1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8], labels=["⅛", "¼", "½", "1", "2", "4", "8"])
    bar.ax.minorticks_off()
    bar.set_label("load / uniform load")
    footnote(canvas, results)
    caption = (
        f"Chapter use of {label}, seed {run.seed}, in the last window of each phase: a chapter's "
        "share of the picks over its share under uniform use. Black: never picked."
        + (f" The first {first} are shared, always read and not shown." if first > 1 else "")
        + (" Chapter 0 is shared, always read and not shown." if first == 1 else "")
    )
    alt = f"Heat map of chapter load by memory layer for {label}"
    return finish(canvas, f"chapters_{run.arm}", caption, alt)


def moving_mean(values: Sequence[float], window: int) -> list[float]:
    """Centred mean over ``window`` values (odd), over fewer near the ends; NaN spreads."""
    spans = []
    for index in range(len(values)):
        half = min(index, len(values) - 1 - index, window // 2)
        spans.append(values[index - half : index + half + 1])
    return [sum(span) / len(span) for span in spans]


def load_ratio(load: Sequence[int]) -> list[float]:
    """Each chapter's picks over the mean; 1 everywhere under uniform use."""
    mean = sum(load) / len(load)
    return [count / mean if mean else 0.0 for count in load]


def _routed_runs(results: Results) -> list[Run]:
    """The first run with chapter counts of every arm that has any."""
    first: dict[str, Run] = {}
    for run in results.runs.values():
        if any(run.last_windows(phase) for phase in results.phases):
            first.setdefault(run.arm, run)
    return list(first.values())
