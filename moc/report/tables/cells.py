"""How a table's cells are written, and what every table carries."""

from __future__ import annotations

import math
from collections.abc import Sequence

from evals.statistics.estimates import Estimate
from moc.report.numbers.records import Run
from moc.report.numbers.results import NEAR, NON_CAUSAL_NOTE, Results
from moc.report.numbers.scores import Score
from moc.report.tables.layout import Table

MISSING = "—"
UNDEFINED = "undefined"
NEAR_ZERO_NOTE = f"{NEAR} before a difference: its interval includes 0."
NEAR_ZERO = "not distinguishable"  # from zero, by its interval


def table_of(
    results: Results,
    name: str,
    caption: str,
    header: list[str],
    rows: list[list[str]],
    *,
    num_keys: int = 1,
    notes: Sequence[str] = (),
    raw: Sequence[dict[str, object]] = (),
) -> Table:
    """A table that says what † means, if any arm of the study carries it."""
    marks = [f"{NON_CAUSAL_NOTE}."] if results.any_non_causal else []
    return Table(name, caption, header, rows, num_keys, [*notes, *marks], list(raw))


def over_text(results: Results) -> str:
    if len(results.seeds) == 1:
        return "; one seed"
    if results.num_complete_seeds() == len(results.seeds):
        return f"; mean over {len(results.seeds)} seeds"
    return "; mean over the seeds that got there"


def intervals_text(results: Results, unit: str) -> str:
    """What the intervals of ``estimated`` are: over seeds, or over the ``unit`` of the one seed."""
    if len(results.seeds) == 1:
        return f"[95% interval over {unit}]; one seed"
    return f"[95% t-interval over seeds and {unit}]{over_text(results)}"


def estimated(
    results: Results, estimate: Estimate | None, *, digits: int = 3, scale: float = 1
) -> str:
    """``+0.031 [0.012, 0.050]``, and in words when that interval includes 0."""
    if estimate is None:
        return MISSING
    text = signed(scale * estimate.value, digits) + interval(estimate, digits=digits, scale=scale)
    if estimate.num_seeds < len(results.seeds):
        text += f" ({estimate.num_seeds} of {len(results.seeds)} seeds)"
    return f"{text} {NEAR_ZERO}" if estimate.near_zero else text


def items_text(results: Results) -> str:
    """What the intervals over ``moc.report.numbers.effects`` are over."""
    if len(results.seeds) == 1:
        return "[95% interval over items]; one seed"
    return f"[95% interval over seeds and items]{over_text(results)}"


def marked(
    results: Results, estimate: Estimate | None, *, digits: int = 1, scale: float = 100
) -> str:
    """``+3.1 [1.2, 5.0]``, with a mark in front when that interval includes 0."""
    if estimate is None:
        return MISSING
    if math.isnan(estimate.value):
        return UNDEFINED
    text = f"{NEAR} " * estimate.near_zero + signed(scale * estimate.value, digits)
    text += interval(estimate, digits=digits, scale=scale)
    few = 0 < estimate.num_seeds < len(results.seeds)
    return text + f" ({estimate.num_seeds} of {len(results.seeds)} seeds)" * few


def interval(estimate: Estimate, *, digits: int, scale: float = 1) -> str:
    """`` [1.2, 5.0]``; empty where there is none."""
    if not estimate.has_interval:
        return ""
    low, high = (plain(scale * end, digits) for end in (estimate.low, estimate.high))
    return f" [{low}, {high}]"


def probability(p: float) -> str:
    if math.isnan(p):
        return MISSING
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def count(value: object) -> str:
    return f"{value:,.0f}" if isinstance(value, (int, float)) else MISSING


def percent(share: float | None) -> str:
    return MISSING if share is None else f"{100 * share:.1f}"


def level(score: Score | None) -> str:
    """A score in percent, with a mark in front when it reaches its baseline."""
    if score is None:
        return MISSING
    return f"{NEAR} " * score.near + percent(score.value)


def shared_text(results: Results, run: Run) -> str:
    """``facts_a as moc``: phases that another arm had trained; empty where there are none."""
    if not run.shared:
        return ""
    donor = run.shared.arm
    if donor not in results.arms:  # of several studies: named after its study, as this one is
        donor = f"{run.arm.rpartition('/')[0]}/{donor}"
    return f"{', '.join(run.shared.phases)} as {results.label(donor)}"


def plain(value: float, digits: int) -> str:
    """With a real minus sign, and none on what rounds to zero."""
    text = f"{value:.{digits}f}"
    return text.removeprefix("-") if float(text) == 0 else text.replace("-", "−")


def fixed(value: float | None, digits: int) -> str:
    return MISSING if value is None or math.isnan(value) else f"{value:.{digits}f}"


def signed(value: float, digits: int) -> str:
    """With a real minus sign, and no sign on what rounds to zero."""
    if math.isnan(value):
        return MISSING
    text = plain(value, digits)
    return f"+{text}" if value > 0 and float(text) > 0 else text
