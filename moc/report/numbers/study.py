"""A study as plain typed records: what was asked for, and what the plan and the machine said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from moc.store.rundir import TRAINED


@dataclass(frozen=True)
class Source:
    """A named source of documents."""

    name: str
    kind: str
    text_settings: Mapping[str, Any]  # setting -> value: all that decides the text of its losses


@dataclass(frozen=True)
class Phase:
    """One phase as an arm trains it, or as the study says."""

    name: str
    tokens: int  # budget
    tokens_per_step: int
    context_length: int
    mixture: Mapping[str, float]  # source -> weight

    @property
    def trained_tokens(self) -> int:
        """Of the whole steps that fit into the budget."""
        return self.tokens // self.tokens_per_step * self.tokens_per_step


@dataclass(frozen=True)
class MemoryShape:
    """A bank and what is read of it, as planned."""

    kind: str
    row_name: str  # what one is called: a chapter, a value
    num_rows: int
    row_shape: Sequence[int]
    num_choices: int  # rows that can be read; more than there are if one stands for all
    num_always: int  # the first so many rows are always read
    read: str  # rows that are read together, in words
    most_mixed: int  # that a position can mix: tokens of chapters, values


@dataclass(frozen=True)
class Shape:
    """Of a model."""

    num_layers: int
    dim: int
    mlp_dim: int
    memory: MemoryShape | None


@dataclass(frozen=True)
class Match:
    """An arm's size was matched to another arm's."""

    target: str
    relative_error: float | None  # what the plan found; None: nothing was planned


@dataclass(frozen=True)
class Parameters:
    """How many of them; None where no plan says."""

    total: int | None = None
    trainable: int | None = None
    backbone: int | None = None
    memory_layers: int | None = None
    bank: int | None = None


@dataclass(frozen=True)
class Cost:
    """What the plan says that an arm costs; None where no plan says."""

    parameters: Parameters = Parameters()
    paper_forward_flops: float | None = None  # per sequence
    hardware_train_flops: float | None = None  # per token
    paper_train_flops: Mapping[str, float] = field(default_factory=dict)  # of each phase, in all
    steps: Mapping[str, int] = field(default_factory=dict)  # of the optimizer, by phase
    state_bytes: float | None = None
    activation_bytes: float | None = None


@dataclass(frozen=True)
class Arm:
    """One model variant."""

    name: str
    description: str
    phases: Mapping[str, Phase]  # its own
    causal: bool
    routing: str  # what shares a choice of rows: "segment of 32", "token", "none", ...
    bank_optimizer: str  # "dense", "lazy" or "frozen", by phase where phases differ, or "none"
    shape: Shape | None  # as trained; None while only a solver's plan knows it
    iso_flop: Match | None
    iso_param: Match | None
    cost: Cost
    size: str | None = None  # of a ladder
    twin_of: str | None = None  # its bank frozen at its initial values
    assay: str | None = None  # the study whose assay decides what may be said of it; None: no assay
    role: str | None = None  # in that assay: "positive", "negative"

    @property
    def family(self) -> str:
        """The arm's name without its size: what a ladder multiplied."""
        return self.name if self.size is None else self.name.removesuffix(f"-{self.size}")


@dataclass(frozen=True)
class Study:
    """What was asked for, and what the plan and the machine said."""

    name: str
    description: str
    seeds: Sequence[int]
    sources: Mapping[str, Source]
    phases: Mapping[str, Phase]
    arms: Mapping[str, Arm]
    route_on: str  # "context", "full" or "both": may an answer steer the routing that scores it?
    num_followed: int  # items of a task that are scored while a phase trains
    git_commit: str
    environment: Mapping[str, object]  # what it ran on, by name
    config: str  # all settings, as YAML

    def twin(self, arm: str) -> str | None:
        """The arm that is ``arm`` with its bank frozen at its initial values."""
        return next((name for name, other in self.arms.items() if other.twin_of == arm), None)

    def phases_of(self, arm: str | None) -> Mapping[str, Phase]:
        """Those of ``arm``; the study's own for None, or where the arm has none of its own."""
        return (self.arms[arm].phases if arm is not None else None) or self.phases

    def phase_ends(self, arm: str | None = None) -> list[tuple[str, int]]:
        """Name of each phase and the training tokens seen when it ends."""
        ends, total = [], 0
        for name, phase in self.phases_of(arm).items():
            total += phase.trained_tokens
            ends.append((name, total))
        return ends

    def taught(self, source: str) -> str | None:
        """The first of the study's phases whose mixture has ``source``; where none has, the first
        in which any arm trains on it. None if no arm does."""
        for arms in ([None], list(self.arms)):
            for phase in self.phases:
                if any(self._has(arm, phase, source) for arm in arms):
                    return phase
        return None

    def taught_last(self, source: str) -> str | None:
        """The last of the study's phases whose mixture has ``source``."""
        return next((p for p in reversed(list(self.phases)) if self._has(None, p, source)), None)

    def trained_before(self, arm: str, source: str, phase: str) -> bool:
        """Whether the mixtures of ``arm`` have ``source`` before ``phase``."""
        earlier = list(self.phases)[: list(self.phases).index(phase)]
        return any(self._has(arm, other, source) for other in earlier)

    def _has(self, arm: str | None, phase: str, source: str) -> bool:
        found = self.phases_of(arm).get(phase)
        return found is not None and source.removesuffix(TRAINED) in found.mixture
