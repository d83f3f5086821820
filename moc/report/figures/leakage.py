"""What seeing later tokens is worth, by position in the sequence."""

from __future__ import annotations

import math

from moc.report.figures.drawing import (
    GREY,
    Figure,
    colour,
    finish,
    footnote,
    legend_above,
    marker,
    panels_of,
)
from moc.report.numbers import leakage as measured
from moc.report.numbers.results import Results

LINES = ["-", "--", ":", "-."]  # of boundaries, the last one first


def leakage(results: Results) -> Figure | None:
    """One panel per source: bits per token that leak, by position in the sequence."""
    arms = measured.non_causal_arms(results)
    sources = measured.sources(results, arms)
    curves = {
        (source, arm, boundary): found
        for source in sources
        for arm in arms
        for boundary in results.phases  # at the start, the memory has yet to be used
        if (found := measured.by_position(measured.of_source(results, arm, boundary, source)))
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
                [part.value for *_, part in found],
                yerr=[
                    [_arm_length(part.value - part.low) for *_, part in found],
                    [_arm_length(part.high - part.value) for *_, part in found],
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
    panels[0].set_ylabel("leakage (bits per token)")
    legend_above(
        canvas, results, arms=arms, lines={f"after {name}": styles[name] for name in reached}
    )
    footnote(canvas, results)
    over = "over seeds" if len(results.seeds) > 1 else "over windows, one seed"
    caption = (
        "Leakage: bits per token gained by routing on later tokens (prefix-only minus full "
        f"routing), by position in the sequence, with 95% intervals {over}. Vertical axes differ."
    )
    alt = "Leakage against position in the sequence, one line per arm and boundary"
    return finish(canvas, "leakage", caption, alt)


def _arm_length(length: float) -> float:
    """Of an error bar; none where there is no interval."""
    return max(0.0, length) if math.isfinite(length) else 0.0
