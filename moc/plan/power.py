"""What the planned seeds and items can tell: the smallest difference between two arms that the
report's verdicts would see, and the seeds that a smaller one needs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import TextWrapper
from typing import Any, Literal

from evals.statistics.inference import LEVEL, MIN_SEEDS
from evals.statistics.power import (
    MOST_SEEDS,
    POWER,
    Variances,
    seeds_needed,
    smallest_detectable,
)
from moc.config.schema import StudyConfig


@dataclass(frozen=True)
class Unit:
    """What a difference is measured in; ``scale`` of it make one of the variances' unit."""

    name: str
    scale: float = 1.0
    digits: int = 3


POINTS = Unit("points", 100.0, 1)
BITS_PER_TOKEN = Unit("bits per token")
BITS_PER_BYTE = Unit("bits per byte")
KILOBITS = Unit("kbit", 1e-3, 1)  # held of a source's people or records, all together

Counted = Literal["items", "windows", "records", "seeds"]


@dataclass(frozen=True)
class Basis:
    """What is known beforehand of a difference between what two arms forget."""

    name: str  # of a task or source
    unit: Unit
    counted: Counted  # what is drawn besides seeds; "seeds": nothing is
    variances: Variances
    number: int | None = None  # of those; None: not known


# Stated where no earlier study is named. Measured on two dense arms of three seeds: facts about 40
# people, then skills; means over two tasks and two texts (experiments/LOG.md, 2026-11-28). Three
# seeds know a spread to a factor of two at best, and other models differ: prefer a study of yours.
DEFAULTS = (
    Basis("a task", POINTS, "items", Variances(0.0031, 0.0018, 0.245, 6.0)),
    Basis("loss", BITS_PER_TOKEN, "windows", Variances(0.100, 0.0, 0.212)),
)


@dataclass(frozen=True)
class Sight:
    """What a study can tell of one kind of difference, in its unit."""

    basis: Basis
    num_seeds: int
    number: float  # of what is counted besides seeds; infinity: not known, as if there were no end
    detectable: float  # with ``num_seeds``, or with ``MIN_SEEDS`` if these are fewer
    wanted: float
    seeds_needed: int | None  # by ``wanted``; None: more than ``MOST_SEEDS``

    def to_json(self) -> dict[str, Any]:
        """``detectable`` is null where the seeds support no claim."""
        return {
            "name": self.basis.name,
            "unit": self.basis.unit.name,
            "counted": self.basis.counted,
            "number": None if math.isinf(self.number) else self.number,
            "detectable": self.detectable if self.num_seeds >= MIN_SEEDS else None,
            "wanted": self.wanted,
            "seeds_needed": self.seeds_needed,
        }


def sights(
    study: StudyConfig, bases: Sequence[Basis] = DEFAULTS, *, points: float | None = None
) -> list[Sight]:
    """One for each of ``bases`` that ``study`` measures; none if it has nothing to compare.

    Args:
        points: a difference that it is wanted to see; else half of what it sees.
    """
    if len(study.arms) < 2 or len(study.phases) < 2:
        return []
    return [_sight(study, basis, points) for basis in bases if _measures(study, basis)]


def sights_json(found: Sequence[Sight], source: str) -> dict[str, Any]:
    """``source`` says where the variances are from."""
    return {
        "power": POWER,
        "level": LEVEL,
        "variances": source,
        "differences": [sight.to_json() for sight in found],
    }


def render_sights(found: Sequence[Sight], source: str, width: int = 100) -> list[str]:
    """Lines for a terminal of ``width`` columns; ``source`` says where the variances are from."""
    if not found:
        return []
    head = (
        f"Differences between what two arms forget that are seen with {POWER:.0%} power "
        f"({LEVEL:.0%}, two-sided, one test by itself; variances: {source}):"
    )
    wrapper = TextWrapper(width, break_on_hyphens=False, break_long_words=False)  # paths stay whole
    lines = wrapper.wrap(head)
    wrapper.initial_indent, wrapper.subsequent_indent = "  ", "    "
    return lines + [line for sight in found for line in wrapper.wrap(_sentence(sight))]


def _measures(study: StudyConfig, basis: Basis) -> bool:
    if basis.counted == "items":
        return bool(study.evals.tasks)
    if basis.counted == "records":
        return study.evals.knowledge_items > 0
    return basis.counted == "seeds" or study.evals.leakage_windows > 0


def _sight(study: StudyConfig, basis: Basis, points: float | None) -> Sight:
    evals = study.evals
    planned = {"items": evals.num_items, "windows": evals.leakage_windows, "seeds": 1}
    planned["records"] = basis.number  # those of the earlier study, whose bits these are
    number = planned[basis.counted] or basis.number or math.inf
    scale, num_seeds = basis.unit.scale, max(MIN_SEEDS, len(study.seeds))
    detectable = scale * smallest_detectable(basis.variances, num_seeds, number)
    wanted = detectable / 2
    if points is not None and basis.unit == POINTS:
        wanted = points
    needed = seeds_needed(wanted / scale, basis.variances, number)
    return Sight(basis, len(study.seeds), number, detectable, wanted, needed)


def _sentence(sight: Sight) -> str:
    basis, unit = sight.basis, sight.basis.unit
    few = sight.num_seeds < MIN_SEEDS
    seeds = f"{MIN_SEEDS if few else sight.num_seeds} seeds"
    if basis.counted != "seeds":
        number = "any number of" if math.isinf(sight.number) else f"{sight.number:,}"
        seeds += f" and {number} {basis.counted}"
    caution = "one seed supports" if sight.num_seeds == 1 else f"{sight.num_seeds} seeds support"
    needed = f"{sight.seeds_needed or MOST_SEEDS:,} seeds"
    if sight.seeds_needed is None:
        needed = f"more than {needed}" + f", or more {basis.counted}" * (basis.counted != "seeds")
    return (
        f"{basis.name}: {f'{caution} no claim; ' * few}{_amount(sight.detectable, unit)} with "
        f"{seeds}; {_amount(sight.wanted, unit)} would need {needed}"
    )


def _amount(value: float, unit: Unit) -> str:
    text = f"{value:.{unit.digits}f} {unit.name}"
    if unit == BITS_PER_TOKEN:
        text += f" ({value * math.log(2):.{unit.digits}f} nats)"
    return text
