"""Could this study have seen a memory store anything? Its controls, and what they came to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from evals.statistics.estimates import Estimate
from evals.statistics.inference import LEVEL, MIN_SEEDS
from moc.report.numbers.results import Results
from moc.report.numbers.stored import first_learned, marginal
from moc.report.numbers.study import Arm

POSITIVE, NEGATIVE = "positive", "negative"
TOO_FEW = {1: "one seed supports no claim", 2: "two seeds support no claim"}
NEITHER = "not distinguishable"
UNSEEN = "this study could not have seen it"


@dataclass(frozen=True)
class Control:
    """One arm that must store more in its bank than its twin, or must not."""

    arm: str
    role: str
    source: str | None  # that its bits are of; None: it has no phase with any
    boundary: str | None  # after the phase that taught it
    marginal: Estimate | None  # bits; None: not measured (yet)

    @property
    def stores(self) -> bool:
        """Significantly more than its twin."""
        found = self.marginal
        return found is not None and found.value > 0 and found.p < LEVEL

    @property
    def passed(self) -> bool:
        if self.marginal is None:
            return False
        return self.stores == (self.role == POSITIVE)


def controls(results: Results) -> list[Control]:
    """Those of every size of a ladder; empty for a study without an assay."""
    return results.once("assay", lambda: _controls(results))


def passed(results: Results, *arms: str) -> bool:
    """Whether a verdict about the memories of ``arms`` can be given: in their studies, at their
    sizes, the positive control stores and no negative one does. Always, without an assay."""
    groups = {_group(results, arm) for arm in arms}
    mine = [control for control in controls(results) if _group(results, control.arm) in groups]
    return all(control.passed for control in mine)


def _group(results: Results, arm: str) -> tuple[str | None, str | None]:
    found = results.study.arms[arm]
    return found.assay, found.size


@dataclass(frozen=True)
class BankVerdict:
    """Whether the bank of one arm stores anything, from the bits held beyond its twin."""

    arm: str
    source: str
    boundary: str
    bits: Estimate | None
    words: str


STORES, LESS_THAN = "stores", "stores less than its twin"


def bank_verdicts(results: Results) -> list[BankVerdict]:
    """Of every arm with a twin, on the source that it learns first."""
    return results.once("bank verdicts", lambda: list(_bank_verdicts(results)))


def _bank_verdicts(results: Results) -> Iterator[BankVerdict]:
    for arm in results.arms:
        first = first_learned(results, arm)
        if first is not None and results.study.twin(arm) is not None:
            source, boundary = first
            bits = marginal(results, arm, boundary, source)
            yield BankVerdict(arm, source, boundary, bits, _words(results, arm, bits))


def _words(results: Results, arm: str, bits: Estimate | None) -> str:
    if not passed(results, arm):
        return UNSEEN
    if bits is None:
        return "not measured"
    if bits.num_seeds < MIN_SEEDS:
        return TOO_FEW[bits.num_seeds]
    if not bits.p < LEVEL:
        return NEITHER
    return STORES if bits.value > 0 else LESS_THAN


def _controls(results: Results) -> list[Control]:
    found = [_control(results, arm) for arm in results.study.arms.values() if arm.role is not None]
    return sorted(found, key=lambda control: control.role == NEGATIVE)  # stable: sizes keep theirs


def _control(results: Results, arm: Arm) -> Control:
    role = str(arm.role)
    if (first := first_learned(results, arm.name)) is None:
        return Control(arm.name, role, None, None, None)
    source, boundary = first
    return Control(arm.name, role, source, boundary, marginal(results, arm.name, boundary, source))
