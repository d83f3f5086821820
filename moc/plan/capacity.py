"""What a dense model can be expected to hold, beside what its data demand: is a memory needed?

Allen-Zhu and Li, "Physics of Language Models", part 3.3 (arXiv 2404.05405): 2 bits a parameter
where each fact is seen 1,000 times, 1 bit at 100 times.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from textwrap import wrap

from moc.config.schema import ArmConfig, PhaseConfig, StudyConfig
from moc.plan.arms import resolve_arms
from moc.plan.flops import parameter_counts

NEEDED = 0.25  # demand ratio below which no memory is needed to learn what there is
USUAL_EXPOSURES = 100  # where it is not known how often a fact is seen


@dataclass(frozen=True)
class Demand:
    """What one dense arm has to learn, in all its phases."""

    arm: str
    bits: float
    num_parameters: int
    exposures: float | None  # of a fact, on average; None: not known

    @property
    def capacity(self) -> float:
        """Bits."""
        exposures = USUAL_EXPOSURES if self.exposures is None else self.exposures
        return self.num_parameters * bits_per_parameter(exposures)

    @property
    def ratio(self) -> float:
        return self.bits / self.capacity if self.capacity else math.inf

    def __str__(self) -> str:
        seen = f"{USUAL_EXPOSURES} times, say"
        if self.exposures is not None:
            seen = f"{self.exposures:,.0f} times"
        text = (
            f"{self.arm}: {self.bits:,.0f} bits demanded, each seen {seen}, of "
            f"{self.num_parameters:,} parameters, which hold about {self.capacity:,.0f}: "
            f"demand ratio {self.ratio:.2f}"
        )
        if self.ratio < NEEDED:
            text += f"; below {NEEDED}, no memory is needed to learn this"
        return text


def bits_per_parameter(exposures: float) -> float:
    """On the line through both published points over the logarithm of the exposures, from none at
    10 to the most that was seen, 2."""
    return min(2.0, max(0.0, math.log10(max(exposures, 1.0)) - 1))


def render_demands(found: Sequence[Demand], width: int = 100) -> list[str]:
    """Lines for a terminal of ``width`` columns."""
    return [line for one in found for line in wrap(str(one), width, subsequent_indent="  ")]


def demands_of(study: StudyConfig, bits: Mapping[str, float]) -> list[Demand]:
    """Of every arm without memory.

    Args:
        bits: source -> what it demands; sources without are left out.
    """
    found = []
    for name, arm in resolve_arms(study).items():
        sources = {s for phase in arm.phases.values() for s in phase.mixture if bits.get(s)}
        if arm.model.memory is not None or not sources:
            continue
        seen = [_exposures(study, arm, source) for source in sources]
        known = [times for times in seen if times is not None]
        exposures = sum(known) / len(known) if len(known) == len(seen) else None
        total = sum(bits[source] for source in sources)
        found.append(Demand(name, total, parameter_counts(arm.model).total, exposures))
    return found


def _exposures(study: StudyConfig, arm: ArmConfig, source: str) -> float | None:
    """How often each record is trained on; None where only tokenised text would tell."""
    config = study.data[source]
    if config.kind != "records":
        return None
    rows = 0.0
    for phase in arm.phases.values():
        if source in phase.mixture:
            if (documents := _documents(study, phase, source)) is None:
                return None
            rows += documents
    return rows / config.num_records


def _documents(study: StudyConfig, phase: PhaseConfig, source: str) -> float | None:
    all_tokens = phase.num_steps() * phase.tokens_per_step
    tokens = all_tokens * phase.mixture[source] / sum(phase.mixture.values())
    if phase.packing == "documents":
        return tokens / phase.context_length
    if study.tokenizer.kind != "words" or study.tokenizer.path is not None:
        return None
    config = study.data[source]
    return tokens / (config.key_words + 2 * config.num_attributes + 1)  # and the end of text
