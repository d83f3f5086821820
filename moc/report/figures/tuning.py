"""How sensitive every arm is to what was tuned."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from moc.report.figures.drawing import Figure, colour, finish, legend_above, marker, panels_of
from moc.report.numbers.results import Results
from moc.report.numbers.tuning import Tuned, Tuning, cloud, curve, is_number, tuning

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Points = list[tuple[float, float]]


def sensitivity(results: Results) -> Figure | None:
    """One panel per axis of numbers: the metric over it, choices marked. Of a grid one line an arm;
    a sampler's trials share no other axis, and are points."""
    found = tuning(results)
    if found is None:
        return None
    points_of = curve if found.asked is None else cloud
    points = {
        axis: {arm.arm: points_of(arm, axis) for arm in found.arms if len(points_of(arm, axis)) > 1}
        for axis in found.axes
    }
    axes_drawn = [axis for axis, by_arm in points.items() if by_arm]
    if not axes_drawn:
        return None
    canvas, panels = panels_of(len(axes_drawn), share_y=True, columns=2, height=2.8)
    for panel, axis in zip(panels, axes_drawn, strict=True):
        for arm in found.arms:
            if arm.arm in points[axis]:
                _draw(panel, axis, arm, points[axis][arm.arm], found, results.arms.index(arm.arm))
        _scale(panel, found.axes[axis], points[axis])
        panel.set_xlabel(axis)
    panels[0].set_ylabel("bits per byte")
    legend_above(canvas, results, arms=[arm.arm for arm in found.arms])
    caption = (
        f"Sensitivity: {found.metric}, over each axis, {_others(found)}. Large markers: what was "
        "chosen."
    )
    alt = "Tuning metric against each axis, one colour per arm, the chosen point marked"
    return finish(canvas, "sensitivity", caption, alt)


def _draw(panel: Axes, axis: str, arm: Tuned, points: Points, found: Tuning, index: int) -> None:
    xs, ys = [x for x, _ in points], [y for _, y in points]
    line = "-" if found.asked is None else ""
    panel.plot(xs, ys, marker=".", linestyle=line, color=colour(index), linewidth=1.2, markersize=4)
    pruned = [float(x) for point in arm.pruned if is_number(x := point.get(axis))]
    at_top = panel.get_xaxis_transform()
    panel.plot(pruned, [0.98] * len(pruned), "|", color=colour(index), transform=at_top)
    best = arm.metrics[arm.points.index(arm.chosen)]
    panel.plot([float(arm.chosen[axis])], [best], marker(index), color=colour(index), markersize=8)


def _scale(panel: Axes, values: Any, by_arm: dict[str, Points]) -> None:
    from matplotlib.ticker import NullLocator

    tried = sorted({x for points in by_arm.values() for x, _ in points})
    if values.get("log", False) if isinstance(values, dict) else tried[0] > 0:
        panel.set_xscale("log")
    if not isinstance(values, dict):
        panel.set_xticks(tried, [f"{x:g}" for x in tried])
        panel.xaxis.set_minor_locator(NullLocator())


def _others(found: Tuning) -> str:
    """What the caption says of the other axes, and of trials without a metric."""
    if found.asked is None:
        return "the other axes at the arm's choice"
    pruned = sum(len(arm.pruned) for arm in found.arms)
    ticks = f"; ticks above: {pruned} trials that were pruned, and have none" if pruned else ""
    return f"one point a trial, wherever its other axes were{ticks}"
