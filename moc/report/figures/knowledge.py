"""Bits of people and records that every arm holds: along training, and over what is demanded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from evals.statistics.estimates import Estimate
from moc.report.figures.curves import draw_curves, followed, panels_over_tokens, seeds_text
from moc.report.figures.drawing import (
    GREY,
    Figure,
    boundary_axis,
    colour,
    dodge,
    finish,
    footnote,
    legend_above,
    marker,
    panels_of,
    place_legend,
)
from moc.report.numbers.results import Results
from moc.report.numbers.stored import (
    first_learned,
    known_sources,
    learns,
    marginal,
    per_parameter,
    stored,
    table_at,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def knowledge(results: Results) -> Figure | None:
    """One panel per source: bits held at every boundary, one line per arm."""
    if len(results.phases) == 1 and _demands(results):
        return None  # ``capacity`` shows all of it
    sources = known_sources(results)
    if not sources:
        return None
    canvas, panels = panels_of(len(sources), share_y=True, columns=2, height=2.6)
    for axes, source in zip(panels, sources, strict=True):
        demand = 0.0
        for index, arm in enumerate(results.arms):
            if not learns(results, arm, source):
                continue
            found = [stored(results, arm, boundary, source) for boundary in results.boundaries]
            shift = dodge(index, len(results.arms))
            _line(axes, index, [place + shift for place in range(len(found))], found)
            tables = [table_at(results, arm, b, source) for b in results.boundaries]
            demand = max([demand, *(table.demand for table in tables if table is not None)])
        axes.axhline(1e-3 * demand, color=GREY, linewidth=0.9, linestyle="--", zorder=1)
        boundary_axis(axes, source, results.boundaries)
        axes.set_ylim(bottom=0)
    panels[0].set_ylabel("bits held (kbit)")
    legend_above(canvas, results, lines={"demand": "--"})
    footnote(canvas, results)
    caption = (
        "Bits of every source's people or records that each arm holds, at every boundary, with 95% "
        "intervals over seeds and records. Dashed: what there is to know."
    )
    return finish(canvas, "knowledge", caption, "Bits held at each boundary, one line per arm")


def learning(results: Results) -> Figure | None:
    """One panel per source: bits held along all phases, on the axis of training tokens."""
    runs = results.runs.values()
    sources = [
        source
        for source in known_sources(results)
        if any(len(followed(run, f"{source}/stored_bits")) > 2 for run in runs)
    ]
    if not sources:
        return None
    arms = [arm for arm in results.arms if results.study.arms[arm].twin_of is None]
    canvas, panels = panels_over_tokens(results, sources, "bits held (kbit)")
    for axes, source in zip(panels, sources, strict=True):
        for arm in arms:
            if learns(results, arm, source):
                found = [followed(run, f"{source}/stored_bits") for run in results.runs_of(arm)]
                curves = [curve for curve in found if curve]
                draw_curves(axes, curves, results.arms.index(arm), scale=1e-3)
        axes.set_ylim(bottom=0)
    legend_above(canvas, results, arms=arms)
    footnote(canvas, results)
    caption = (
        "Bits held of each source, by those of its people or records that are followed while "
        f"phases train; dashed lines: ends of phases.{seeds_text(results)} Arms whose bank stays "
        "as it was drawn are left out."
    )
    return finish(canvas, "learning", caption, "Bits held along all phases, one line per arm")


def capacity(results: Results) -> Figure | None:
    """Of a ladder whose sizes demand more and more: bits held, and stored by every bank."""
    from matplotlib.lines import Line2D

    demands = _demands(results)
    if not demands:
        return None
    families = list(dict.fromkeys(results.study.arms[arm].family for arm in demands))
    banks = [arm for arm in demands if results.study.twin(arm) is not None]
    canvas, panels = panels_of(1 + bool(banks), share_y=False, columns=2, height=3.2)
    drawn = [("bits held (kbit)", list(demands), _held, 1e-3)]
    drawn += [("bits per bank parameter, beyond the twin", banks, _beyond, 1.0)] * bool(banks)
    for axes, (title, arms, height, scale) in zip(panels, drawn, strict=True):
        for index, family in enumerate(families):
            mine = [arm for arm in arms if results.study.arms[arm].family == family]
            heights = [height(results, arm) for arm in mine]
            xs = [1e-3 * demands[arm] * 1.03 ** (index - len(families) / 2) for arm in mine]
            _line(axes, index, xs, heights, scale=scale)
        axes.set_xscale("log")
        ticks = sorted({round(1e-3 * demand, 1) for demand in demands.values()})
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
        axes.set_xlabel("demand (kbit)")
        axes.set_ylabel(title)
    whole = 1e-3 * np.geomspace(min(demands.values()), max(demands.values()))
    panels[0].plot(whole, whole, color=GREY, linewidth=0.9, linestyle="--", zorder=1)
    panels[0].set_ylim(bottom=0)
    marks = [
        Line2D([], [], color=colour(i), marker=marker(i), markersize=4, label=family)
        for i, family in enumerate(families)
    ]
    marks.append(Line2D([], [], color=GREY, linestyle="--", label="all that is demanded"))
    place_legend(canvas, marks)
    footnote(canvas, results, *demands)
    caption = (
        "Bits held of what was trained first, over the bits that there were to know, and bits that "
        "every bank stores per parameter: what its arm holds beyond the same arm with its bank "
        "frozen at its initial values. 95% intervals over seeds and records."
    )
    alt = "Bits held against bits demanded, one line per arm"
    return finish(canvas, "capacity", caption, alt)


def _demands(results: Results) -> dict[str, float]:
    """Arm of a ladder -> bits that what it learns first demands, without twins; empty unless sizes
    differ in that."""
    found = {}
    for name, arm in results.study.arms.items():
        first = first_learned(results, name)
        if arm.size is not None and arm.twin_of is None and first is not None:
            source, boundary = first
            if (table := table_at(results, name, boundary, source)) is not None:
                found[name] = table.demand
    return found if len(set(found.values())) > 1 else {}


def _held(results: Results, arm: str) -> Estimate | None:
    first = first_learned(results, arm)
    return first and stored(results, arm, first[1], first[0])


def _beyond(results: Results, arm: str) -> Estimate | None:
    first = first_learned(results, arm)
    return first and per_parameter(results, arm, marginal(results, arm, first[1], first[0]))


def _line(
    axes: Axes,
    index: int,
    xs: Sequence[float],
    found: Sequence[Estimate | None],
    *,
    scale: float = 1e-3,
) -> None:
    known = [(x, e) for x, e in zip(xs, found, strict=True) if e is not None]
    heights = [scale * e.value for _, e in known]
    axes.plot(
        [x for x, _ in known],
        heights,
        color=colour(index),
        marker=marker(index),
        markersize=3.5,
        linewidth=1.1,
    )
    for x, e in known:
        if e.has_interval:
            ends = [scale * e.low, scale * e.high]
            axes.plot([x, x], ends, color=colour(index), linewidth=0.9, alpha=0.7)
