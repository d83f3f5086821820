"""What was measured of every run, as plain typed records, whoever wrote the files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from evals.statistics.inference import Interval
from moc.store.journal import Record

Route = Literal["full", "prefix", "counterfactual"]
Series = tuple[list[int], list[float]]  # training tokens and values, in the order of logging
ItemRecord = Record  # one line of a samples file: an item and how it was answered


@dataclass(frozen=True)
class TaskScore:
    """One task at one boundary, or under a control."""

    value: float  # share of items, 0 to 1
    num_items: int
    chance: float = 0.0
    majority: float = 0.0
    metric: str | None = None
    stderr: float | None = None
    source: str | None = None  # that it asks about; None for a stock task
    bits_per_byte: float | None = None  # of right answers; None where answers were written
    predictions: Mapping[str, int] = field(default_factory=dict)  # option -> times picked
    targets: Mapping[str, int] = field(default_factory=dict)  # option -> times right


@dataclass(frozen=True)
class Known:
    """What one model was asked of a source's people or records."""

    source: str  # its own name for it, which names the file of its items
    attributes: Mapping[str, float]  # bits that a value takes to know
    num_all: int  # people or records there are
    demand: float  # bits, of all of them


@dataclass(frozen=True)
class Control:
    """Scores and losses with the bank changed."""

    tasks: Mapping[str, TaskScore]
    bits_per_byte: Mapping[str, float]  # by source
    knowledge: Mapping[str, Known] = field(default_factory=dict)  # by source


@dataclass(frozen=True)
class WindowLosses:
    """By window of text."""

    num_tokens: Sequence[int]
    bits: Mapping[str, Sequence[float]]  # route -> bits of every window


@dataclass(frozen=True)
class Stretch:
    """Positions of the sequence, from ``start`` to before ``end``."""

    start: int
    end: int
    leakage: Interval


@dataclass(frozen=True)
class SourceLeakage:
    """Bits per token of the same tokens under each route; causal models have ``full`` alone."""

    num_windows: int | None
    num_tokens: int
    tokens: str | None  # fingerprint of what was scored
    loss: Mapping[Route, float]
    leakage: Interval | None  # prefix - full, the sum of the two below
    future: Interval | None  # counterfactual - full: what knowing the future is worth
    mismatch: Interval | None  # prefix - counterfactual: the cost of routing unlike in training
    by_position: Sequence[Stretch]
    by_window: WindowLosses | None


@dataclass(frozen=True)
class TaskLeakage:
    """Multiple-choice accuracy routed on the context, and on the answer too."""

    num_items: int | None
    context: float | None
    full: float | None
    leakage: Interval | None


@dataclass(frozen=True)
class MemoryUse:
    """Which rows were picked on validation text; layers by their number as text."""

    load: Mapping[str, Mapping[str, Sequence[int]]] = field(default_factory=dict)  # source -> layer
    drift: Mapping[str, float] = field(default_factory=dict)  # layer -> relative change of address


@dataclass(frozen=True)
class Boundary:
    """What was measured of one model between two phases; empty where nothing was."""

    name: str
    index: int = 0
    tokens: int | None = None  # trained on so far
    elapsed_sec: float = 0.0  # of the evaluation
    tasks: Mapping[str, TaskScore] = field(default_factory=dict)
    bits_per_byte: Mapping[str, float] = field(default_factory=dict)  # by source
    knowledge: Mapping[str, Known] = field(default_factory=dict)  # by source
    source_leakage: Mapping[str, SourceLeakage] = field(default_factory=dict)
    task_leakage: Mapping[str, TaskLeakage] = field(default_factory=dict)
    memory: MemoryUse = MemoryUse()
    controls: Mapping[str, Control] = field(default_factory=dict)
    dir: Path | None = None  # where its item records are


@dataclass(frozen=True)
class UseWindow:
    """How the rows that one memory layer reads were used over some steps of training."""

    phase: str
    step: int
    layer: int
    load: Sequence[int] | None  # picks of every row; None: too many to be listed each time
    num_always: int
    window_tokens: int
    load_max_over_mean: float | None = None
    entropy: float | None = None
    effective_rows: float | None = None  # exp of the entropy in nats
    dead_share: float | None = None
    coverage: float | None = None  # share of the rows picked in one step
    coverage_tokens: int | None = None  # of that step
    kl_to_uniform: float | None = None
    effective_read: float | None = None  # tokens of chapters, or values, that a position mixes
    shared_mass: float | None = None
    balance_loss: float | None = None
    z_loss: float | None = None


@dataclass(frozen=True)
class ProbePoint:
    tokens: int  # of the probe
    tasks: Mapping[str, tuple[float, int]]  # score and number of items


@dataclass(frozen=True)
class Probe:
    """A copy of one boundary's model, trained on and scored as it went."""

    name: str
    boundary: str
    index: int  # of that boundary
    points: Sequence[ProbePoint]
    dir: Path  # where its item records are

    def curve(self, task: str) -> list[tuple[int, float]]:
        """Tokens and score of every point that has ``task``."""
        return [(p.tokens, p.tasks[task][0]) for p in self.points if task in p.tasks]

    def num_items(self, task: str) -> int:
        return next(point.tasks[task][1] for point in self.points if task in point.tasks)


@dataclass(frozen=True)
class Shared:
    """Phases that another arm had trained already."""

    arm: str
    phases: Sequence[str]


@dataclass(frozen=True)
class Run:
    """One arm and seed; all but these empty if it never started."""

    arm: str
    seed: int
    started: str | None = None  # ISO 8601; None: never
    status: str | None = None
    peak_memory_bytes: float | None = None
    metrics: Mapping[str, Series] = field(default_factory=dict)
    use: Sequence[UseWindow] = ()
    boundaries: Mapping[str, Boundary] = field(default_factory=dict)  # that were reached
    probes: Sequence[Probe] = ()
    shared: Shared | None = None

    def at(self, boundary: str) -> Boundary:
        """An empty one where the run has not got there."""
        return self.boundaries.get(boundary) or Boundary(boundary)

    def series(self, name: str) -> Series:
        """Training tokens and values of one metric, in the order they were logged."""
        return self.metrics.get(name, ([], []))

    def last_windows(self, phase: str) -> list[UseWindow]:
        """Use of rows in the last window of ``phase``, one per memory layer, by layer."""
        found = [window for window in self.use if window.phase == phase]
        last = max((window.step for window in found), default=None)
        by_layer = {window.layer: window for window in found if window.step == last}
        return [by_layer[layer] for layer in sorted(by_layer)]
