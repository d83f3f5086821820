"""Could this study have seen a memory store anything? Its controls, and what they came to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from evals.statistics.estimates import Estimate
from evals.statistics.inference import LEVEL, MIN_SEEDS
from moc.report.numbers.results import Results
from moc.report.numbers.stored import known_sources, learns, marginal
from moc.report.numbers.study import Arm

POSITIVE, NEGATIVE = "positive", "negative"
TOO_FEW = {1: "one seed supports no claim", 2: "two seeds support no claim"}
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


STORES, NOT_MORE, LESS_THAN = "stores", "not distinguishable", "stores less than its twin"


def bank_verdicts(results: Results) -> list[BankVerdict]:
    """Of every arm with a twin, on the source that it learns first."""
    return results.once("bank verdicts", lambda: list(_bank_verdicts(results)))


def _bank_verdicts(results: Results) -> Iterator[BankVerdict]:
    for arm in results.arms:
        if results.study.twin(arm) is None:
            continue
        for source in [one for one in known_sources(results) if learns(results, arm, one)][:1]:
            boundary = str(results.taught(source))
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
        return NOT_MORE
    return STORES if bits.value > 0 else LESS_THAN


def _controls(results: Results) -> list[Control]:
    found = [_control(results, arm) for arm in results.study.arms.values() if arm.role is not None]
    return sorted(found, key=lambda control: control.role == NEGATIVE)  # stable: sizes keep theirs


def _control(results: Results, arm: Arm) -> Control:
    role = str(arm.role)
    sources = [source for source in known_sources(results) if learns(results, arm.name, source)]
    if not sources:
        return Control(arm.name, role, None, None, None)
    boundary = str(results.taught(sources[0]))
    bits = marginal(results, arm.name, boundary, sources[0])
    return Control(arm.name, role, sources[0], boundary, bits)
