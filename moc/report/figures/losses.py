"""Losses: along training, and of every source after every phase."""

from __future__ import annotations

import math
from collections.abc import Sequence

from moc.report.figures.drawing import (
    WIDTH,
    Figure,
    boundary_axis,
    canvas_of,
    colour,
    dodge,
    dots,
    finish,
    footnote,
    legend_above,
    log_axis,
    mark_phases,
    marker,
    panels_of,
    single_seeds,
)
from moc.report.numbers.results import Results
from moc.report.numbers.spikes import spikes

SMOOTHING = 5  # logged values in the moving mean of a loss curve


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
    jumps = [spike for spike in spikes(results) if math.isfinite(spike.loss)]
    for spike in jumps:
        height = min(spike.loss, max(drawn))
        axes.plot([spike.tokens], [height], "x", color=colour(results.arms.index(spike.arm)))
    mark_phases(axes, results)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlabel("training tokens")
    axes.set_ylabel("training loss (nats per token)")
    legend_above(canvas, results)
    footnote(canvas, results)
    seeds = f"seed {results.seeds[0]}" if single else "one line per seed"
    caption = (
        f"Training loss of all arms, mean over {SMOOTHING} neighbouring logged values of a phase; "
        f"{seeds}. Dashed lines: ends of phases.{' Crosses: spikes.' * bool(jumps)}"
    )
    alt = "Training loss against training tokens, one colour per arm"
    return finish(canvas, "losses", caption, alt)


def bits_per_byte(results: Results) -> Figure | None:
    """One panel per source: validation bits per byte after every phase."""
    if not results.sources:
        return None
    canvas, panels = panels_of(len(results.sources), share_y=False)
    for axes, source in zip(panels, results.sources, strict=True):
        for index, arm in enumerate(results.arms):
            line = [results.bits_per_byte(arm, phase, source) for phase in results.phases]
            shift = dodge(index, len(results.arms))
            found = [(position + shift, value) for position, value in enumerate(line) if value]
            axes.plot(
                [position for position, _ in found],
                [value for _, value in found],
                color=colour(index),
                marker=marker(index),
                markersize=4,
                linewidth=1.3,
            )
            positions = [position + shift for position in range(len(line))]
            by_seed = [
                [run.at(phase).bits_per_byte.get(source) for phase in results.phases]
                for run in results.runs_of(arm)
            ]
            single_seeds(axes, index, positions, by_seed)
        boundary_axis(axes, source, results.phases)
    panels[0].set_ylabel("bits per byte")
    legend_above(canvas, results)
    footnote(canvas, results)
    caption = (
        "Bits per byte of each source's validation text after each phase; lower is better. "
        f"Vertical axes differ. The untrained start is in the table only.{dots(results)}"
    )
    return finish(canvas, "bits_per_byte", caption, "Validation bits per byte, one line per arm")


def moving_mean(values: Sequence[float], window: int) -> list[float]:
    """Centred mean over ``window`` values (odd), over fewer near the ends; NaN spreads."""
    spans = []
    for index in range(len(values)):
        half = min(index, len(values) - 1 - index, window // 2)
        spans.append(values[index - half : index + half + 1])
    return [sum(span) / len(span) for span in spans]
