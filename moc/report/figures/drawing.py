"""How every figure of a report is drawn: style, axes, legends, files."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from moc.report.numbers.results import NON_CAUSAL_NOTE, Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

# Okabe and Ito's palette, which colour-blind readers can tell apart; yellow is too pale for lines
PALETTE = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
PALETTE += ["#882255", "#999933", "#8C8C8C"]  # Paul Tol's wine and olive; grey
MARKERS = ["o", "s", "^", "D", "v", "P", "X", "<", ">", "*"]
GREY = "#767676"
INK = "#444444"
WIDTH = 7.2  # inches: a paper's text width
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "axes.edgecolor": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "figure.facecolor": "white",
    "svg.hashsalt": "moc",  # the same results give the same file
}


@dataclass(frozen=True)
class Figure:
    """A drawn figure; ``alt`` says in words what it shows."""

    name: str  # of its file
    caption: str
    alt: str
    width: float  # inches
    png: bytes  # 150 dpi
    svg: bytes


@contextmanager
def style() -> Iterator[None]:
    """Figures drawn inside look alike, whatever a user has set."""
    import matplotlib

    with matplotlib.rc_context({**matplotlib.rcParamsDefault, **STYLE, "backend": "Agg"}):
        yield


def canvas_of(width: float, height: float) -> Canvas:
    """An empty figure of that many inches, outside pyplot's bookkeeping."""
    from matplotlib.figure import Figure as MatplotlibFigure

    return MatplotlibFigure(figsize=(width, height), layout="constrained")


def panels_of(
    num_panels: int, *, share_y: bool, columns: int = 3, height: float = 2.3
) -> tuple[Canvas, list[Axes]]:
    """Small multiples of ``height`` inches, at most ``columns`` in a row."""
    width = WIDTH / columns
    columns = min(columns, num_panels)
    rows = math.ceil(num_panels / columns)
    canvas = canvas_of(max(5.2, width * columns), height * rows + 0.6)
    grid = list(canvas.subplots(rows, columns, squeeze=False, sharey=share_y).flat)
    for unused in grid[num_panels:]:
        unused.remove()
    return canvas, grid[:num_panels]


def boundary_axis(axes: Axes, title: str, boundaries: Sequence[str]) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_title(title)
    axes.set_xticks(range(len(boundaries)), boundaries)
    axes.set_xlim(-0.4, len(boundaries) - 0.6)
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.grid(False, axis="x")


def log_axis(axes: Axes, low: float, high: float) -> None:
    """Logarithmic, with plain numbers at a few values of every decade."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes.set_yscale("log")
    axes.set_ylim(low / 1.12, high * 1.12)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())


def mark_phases(axes: Axes, results: Results) -> None:
    """A dashed line at the end of every phase of the study and its name above the panel; wide
    enough for an arm whose own phases are longer."""
    start = 0
    for name, end in results.phase_ends():
        axes.axvline(end, color=GREY, linewidth=0.9, linestyle="--", zorder=1)
        axes.annotate(
            name,
            ((start + end) / 2, 1),
            xycoords=("data", "axes fraction"),
            xytext=(0, 3),
            textcoords="offset points",
            ha="center",
            color=INK,
        )
        start = end
    longest = max(end for arm in results.arms for _, end in results.phase_ends(arm))
    axes.set_xlim(0, 1.01 * max(start, longest))


def legend_above(
    canvas: Canvas,
    results: Results,
    *,
    arms: Sequence[str] | None = None,
    lines: Mapping[str, str] | None = None,
) -> None:
    """What the colours of ``arms`` (all, by default) and the grey ``lines`` (name -> style) are."""
    from matplotlib.lines import Line2D

    handles = _handles(results, results.arms if arms is None else arms)
    for label, style in (lines or {}).items():
        handles.append(Line2D([], [], color=GREY, linestyle=style, label=label))
    place_legend(canvas, handles)


def place_legend(canvas: Canvas, handles: Sequence[Any]) -> None:
    """Above the panels, in as many columns as the canvas is wide enough for."""
    # a column is as wide as its longest label, a character about 0.08 inches, its line 0.55
    widest = max(len(str(handle.get_label())) for handle in handles)
    columns = max(1, int(canvas.get_figwidth() / (0.55 + 0.08 * widest)))
    num_rows = math.ceil(len(handles) / columns)
    columns = math.ceil(len(handles) / num_rows)
    canvas.legend(handles=handles, loc="outside upper left", ncols=columns)


def footnote(canvas: Canvas, results: Results, *arms: str) -> None:
    """What † means, below every figure that shows such an arm; ``arms``: those shown, or all."""
    if not all(results.is_causal(arm) for arm in arms or results.arms):
        canvas.supxlabel(NON_CAUSAL_NOTE, fontsize=7, color=INK, x=0.01, ha="left")


def wrapped(name: str, length: int = 12) -> str:
    """A name broken at underscores and slashes into lines of about ``length`` characters."""
    lines = [""]
    for part in re.split(r"(?<=[_/])", name):
        if lines[-1] and len(lines[-1] + part) > length:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)


def dodge(index: int, count: int) -> float:
    """Sideways shift of the ``index``-th of ``count`` arms, so that their points do not hide."""
    return 0.06 * (index - (count - 1) / 2)


def colour(index: int) -> str:
    return PALETTE[index % len(PALETTE)]


def marker(index: int) -> str:
    return MARKERS[index % len(MARKERS)]


def single_seeds(
    axes: Axes, index: int, positions: Sequence[float], by_seed: Sequence[Sequence[float | None]]
) -> None:
    """A dot for each of several seeds: what a mean and the interval over items do not show."""
    for heights in by_seed if len(by_seed) > 1 else ():
        for position, height in zip(positions, heights, strict=True):
            if height is not None:
                axes.plot(position, height, ".", color=colour(index), markersize=3, alpha=0.5)


def dots(results: Results) -> str:
    """What ``single_seeds`` has drawn, for the caption."""
    return " Small dots: single seeds." if len(results.seeds) > 1 else ""


def finish(canvas: Canvas, name: str, caption: str, alt: str) -> Figure:
    """Drawn once for each format; ``savefig`` would draw and lay out twice as often."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    png, svg = io.BytesIO(), io.BytesIO()
    canvas.set_dpi(150)
    FigureCanvasAgg(canvas).print_png(png)
    canvas.set_layout_engine("none")  # keeps what was laid out
    canvas.set_dpi(72)
    FigureCanvasSVG(canvas).print_svg(svg, metadata={"Date": None})
    return Figure(name, caption, alt, canvas.get_figwidth(), png.getvalue(), svg.getvalue())


def _handles(results: Results, arms: Sequence[str]) -> list[Any]:
    from matplotlib.lines import Line2D

    return [
        Line2D(
            [],
            [],
            color=colour(index),
            marker=marker(index),
            markersize=4,
            label=results.label(arm),
        )
        for index, arm in enumerate(results.arms)
        if arm in arms
    ]
