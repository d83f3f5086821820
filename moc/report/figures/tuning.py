"""How sensitive every arm is to what was tuned."""

from __future__ import annotations

from moc.report.figures.drawing import Figure, colour, finish, legend_above, marker, panels_of
from moc.report.numbers.results import Results
from moc.report.numbers.tuning import curve, tuning


def sensitivity(results: Results) -> Figure | None:
    """One panel per axis of numbers: the metric over it, one line an arm, choices marked."""
    from matplotlib.ticker import NullLocator

    found = tuning(results)
    if found is None:
        return None
    curves = {
        axis: {arm.arm: curve(arm, axis) for arm in found.arms if len(curve(arm, axis)) > 1}
        for axis in found.axes
    }
    axes_drawn = [axis for axis, by_arm in curves.items() if by_arm]
    if not axes_drawn:
        return None
    canvas, panels = panels_of(len(axes_drawn), share_y=True, columns=2, height=2.8)
    for panel, axis in zip(panels, axes_drawn, strict=True):
        for arm in found.arms:
            points = curves[axis].get(arm.arm, [])
            if not points:
                continue
            index = results.arms.index(arm.arm)
            xs, ys = [x for x, _ in points], [y for _, y in points]
            panel.plot(xs, ys, ".-", color=colour(index), linewidth=1.2, markersize=4)
            best = float(arm.chosen[axis])
            height = dict(points)[best]
            panel.plot([best], [height], marker(index), color=colour(index), markersize=8)
        if all(line[0][0] > 0 for line in curves[axis].values()):
            panel.set_xscale("log")
        tried = sorted({x for line in curves[axis].values() for x, _ in line})
        panel.set_xticks(tried, [f"{x:g}" for x in tried])
        panel.xaxis.set_minor_locator(NullLocator())
        panel.set_xlabel(axis)
    panels[0].set_ylabel("bits per byte")
    legend_above(canvas, results, arms=[arm.arm for arm in found.arms])
    caption = (
        f"Sensitivity: {found.metric}, over each axis, the other axes at the arm's choice. Large "
        "markers: what was chosen."
    )
    alt = "Tuning metric against each axis, one line per arm, the chosen point marked"
    return finish(canvas, "sensitivity", caption, alt)
