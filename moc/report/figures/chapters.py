"""How the chapters were used."""

from __future__ import annotations

import math
from collections.abc import Sequence

from moc.report.figures.drawing import WIDTH, Figure, canvas_of, finish, footnote
from moc.report.numbers.chapters import routed_runs
from moc.report.numbers.records import Run
from moc.report.numbers.results import Results

MAX_COLUMNS = 128  # of a heat map; more chapters are averaged into this many
MAX_RATIO = 8  # the heat map's colours end at 1/8 and 8 times the uniform load


def chapters(results: Results) -> list[Figure]:
    """One figure per arm that has any chapter counts, of its first run with some."""
    return [chapter_map(results, run) for run in routed_runs(results)]


def chapter_map(results: Results, run: Run) -> Figure:
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
        first = windows[0].num_shared
        ratios = np.array([load_ratio(window.load[first:]) for window in windows])
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
    panels[-1].set_xlabel(f"chapter{binning}")
    bar = canvas.colorbar(image, ax=panels, fraction=0.03, pad=0.015, extend="both")
    bar.set_ticks([1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8], labels=["⅛", "¼", "½", "1", "2", "4", "8"])
    bar.ax.minorticks_off()
    bar.set_label("load / uniform load")
    footnote(canvas, results, run.arm)
    caption = (
        f"Chapter use of {label}, seed {run.seed}, in the last window of each phase: a chapter's "
        "share of the picks over its share under uniform use. Black: never picked."
        + (f" The first {first} are shared, always read and not shown." if first > 1 else "")
        + (" Chapter 0 is shared, always read and not shown." if first == 1 else "")
    )
    alt = f"Heat map of chapter load by memory layer for {label}"
    return finish(canvas, f"chapters_{run.arm}", caption, alt)


def load_ratio(load: Sequence[int]) -> list[float]:
    """Each chapter's picks over the mean; 1 everywhere under uniform use."""
    mean = sum(load) / len(load)
    return [count / mean if mean else 0.0 for count in load]
