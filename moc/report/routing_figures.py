"""The figures about routing: what looking ahead is worth, and how the chapters are used."""

from __future__ import annotations

import math
from collections.abc import Sequence

from moc.report import looking_ahead as ahead
from moc.report.drawing import (
    GREY,
    WIDTH,
    Figure,
    canvas_of,
    colour,
    finish,
    footnote,
    legend_above,
    marker,
    panels_of,
)
from moc.report.results import Results
from moc.report.runs import Run

MAX_COLUMNS = 128  # of a heat map; more chapters are averaged into this many
MAX_RATIO = 8  # the heat map's colours end at 1/8 and 8 times the uniform load
LINES = ["-", "--", ":", "-."]  # of boundaries, the last one first


def leakage(results: Results) -> Figure | None:
    """One panel per source: bits per token gained by looking ahead, by position in the sequence."""
    arms = ahead.looking_ahead_arms(results)
    sources = ahead.names(results, "sources", arms)
    curves = {
        (source, arm, boundary): found
        for source in sources
        for arm in arms
        for boundary in results.phases  # at the start, the memory has yet to be used
        if (found := ahead.by_position(ahead.entries(results, arm, boundary, "sources", source)))
    }
    if not curves:
        return None
    reached = [name for name in results.phases if any(key[2] == name for key in curves)]
    styles = {name: LINES[min(i, len(LINES) - 1)] for i, name in enumerate(reversed(reached))}
    canvas, panels = panels_of(len(sources), share_y=False)
    for axes, source in zip(panels, sources, strict=True):
        shown = [(key, found) for key, found in curves.items() if key[0] == source]
        for index, ((_, arm, boundary), found) in enumerate(shown):
            place = results.arms.index(arm)
            width = min(end - start for start, end, _ in found)
            shift = 0.2 * width * (index - (len(shown) - 1) / 2)
            axes.errorbar(
                [(start + end) / 2 + shift for start, end, _ in found],
                [gain.value for *_, gain in found],
                yerr=[
                    [_arm_length(gain.value - gain.low) for *_, gain in found],
                    [_arm_length(gain.high - gain.value) for *_, gain in found],
                ],
                color=colour(place),
                linestyle=styles[boundary],
                linewidth=1.3,
                elinewidth=0.9,
                marker=marker(place),
                markersize=3.5,
                markerfacecolor=colour(place) if boundary == reached[-1] else "white",
                zorder=3,
            )
        axes.axhline(0, color=GREY, linewidth=1, zorder=1)
        axes.set_title(source)
        axes.set_xlabel("position in the sequence")
        edges = [0, *sorted({end for _, found in shown for _, end, _ in found})]
        axes.set_xticks(edges[:: math.ceil((len(edges) - 1) / 4)])
        axes.set_xlim(0, edges[-1])
    panels[0].set_ylabel("gain (bits per token)")
    legend_above(
        canvas, results, arms=arms, lines={f"after {name}": styles[name] for name in reached}
    )
    footnote(canvas, results)
    over = "over seeds" if len(results.seeds) > 1 else "over windows, one seed"
    caption = (
        "Bits per token gained by looking ahead (prefix-only minus full routing), by position in "
        f"the sequence, with 95% intervals {over}. Vertical axes differ."
    )
    alt = "Gain by looking ahead against position in the sequence, one line per arm and boundary"
    return finish(canvas, "leakage", caption, alt)


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


def routed_runs(results: Results) -> list[Run]:
    """The first run with chapter counts of every arm that has any."""
    first: dict[str, Run] = {}
    for run in results.runs.values():
        if any(run.last_windows(phase) for phase in results.phases):
            first.setdefault(run.arm, run)
    return list(first.values())


def _arm_length(length: float) -> float:
    """Of an error bar; none where there is no interval."""
    return max(0.0, length) if math.isfinite(length) else 0.0
