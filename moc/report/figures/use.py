"""How the rows of banks were used."""

from __future__ import annotations

import math
from collections.abc import Sequence

from moc.report.figures.drawing import WIDTH, Figure, canvas_of, finish, footnote
from moc.report.numbers.records import Run
from moc.report.numbers.results import Results
from moc.report.numbers.use import counted_runs, counted_windows

MAX_COLUMNS = 128  # of a heat map; more rows are averaged into this many
MAX_RATIO = 8  # the heat map's colours end at 1/8 and 8 times the uniform load


def memory_use(results: Results) -> list[Figure]:
    """One figure per arm that has any counts of picks, of its first run with some."""
    return [load_map(results, run) for run in counted_runs(results)]


def load_map(results: Results, run: Run) -> Figure:
    """One heat map per phase: load over uniform load of every row that can be picked, by layer."""
    import numpy as np
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap, LogNorm

    label = results.label(run.arm)
    shape = results.study.arms[run.arm].shape
    row_name = shape.memory.row_name if shape and shape.memory else "row"
    phases = [phase for phase in results.phases if counted_windows(run, phase)]
    num_layers = max(len(counted_windows(run, phase)) for phase in phases)
    canvas = canvas_of(WIDTH, len(phases) * (0.65 + 0.24 * num_layers) + 0.6)
    panels = list(canvas.subplots(len(phases), 1, squeeze=False, sharex=True).flat)
    # without the map's darkest ends, which would pass for the black of rows never picked
    colours = ListedColormap(colormaps["PuOr_r"](np.linspace(0.1, 0.9, 256)))
    for axes, phase in zip(panels, phases, strict=True):
        windows = counted_windows(run, phase)
        first = windows[0].num_always
        ratios = np.array([load_ratio((window.load or [])[first:]) for window in windows])
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
        axes.set_yticks(rows, [str(window.layer) for window in windows])
        axes.set_ylabel("layer")
        axes.set_title(f"{label}, last {windows[0].window_tokens:,} tokens of {phase}")
    binning = "" if per_column == 1 else f" (mean of {per_column} per column)"
    panels[-1].set_xlabel(f"{row_name}{binning}")
    bar = canvas.colorbar(image, ax=panels, fraction=0.03, pad=0.015, extend="both")
    bar.set_ticks([1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8], labels=["⅛", "¼", "½", "1", "2", "4", "8"])
    bar.ax.minorticks_off()
    bar.set_label("load / uniform load")
    footnote(canvas, results, run.arm)
    caption = (
        f"Use of {row_name}s by {label}, seed {run.seed}, in the last window of each phase: a "
        f"{row_name}'s share of the picks over its share under uniform use. Black: never picked."
        + (f" The first {first} are always read and not shown." if first > 1 else "")
        + (f" The first {row_name} is always read and not shown." if first == 1 else "")
    )
    alt = f"Heat map of {row_name} load by memory layer for {label}"
    return finish(canvas, f"memory_use_{run.arm}", caption, alt)


def load_ratio(load: Sequence[int]) -> list[float]:
    """Each row's picks over the mean; 1 everywhere under uniform use."""
    mean = sum(load) / len(load)
    return [count / mean if mean else 0.0 for count in load]
