"""What looking ahead is worth, and what stays of an advantage without it: numbers, no text.

From the ``leakage`` part of every boundary's evals.json: bits per token of the same tokens under
``full`` routing (the whole sequence, as trained), ``prefix`` routing (each position's own past) and
``borrowed`` routing (the past, and another text's future).
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any, Literal

from moc.report.estimates import Estimate, over_records, over_seeds, ratio_variance
from moc.report.results import Results
from moc.store.rundir import TRAINED

Entry = dict[str, Any]
Part = Literal["sources", "tasks"]
Routing = Literal["full", "prefix", "borrowed"]

ROUTINGS: tuple[Routing, ...] = ("full", "prefix", "borrowed")
PARTS = ("gain", "look_ahead", "mismatch")


@dataclass(frozen=True)
class Comparison:
    """Loss of one arm at one boundary on one source, and how far it is below the baseline's."""

    source: str
    boundary: str
    arm: str
    routing: Routing
    loss_by_seed: dict[int, float]  # bits per token
    advantage_by_seed: dict[int, float]  # baseline minus arm, of seeds with both on the same tokens
    loss: float | None  # over seeds
    advantage: Estimate | None  # over seeds, paired; positive: the arm is better


def entries(results: Results, arm: str, boundary: str, part: Part, name: str) -> dict[int, Entry]:
    """Seed -> its record of one source or task."""
    found = {
        run.seed: (run.evals.get(boundary, {}).get("leakage") or {}).get(part, {}).get(name)
        for run in results.runs_of(arm)
    }
    return {seed: entry for seed, entry in found.items() if entry}


def names(results: Results, part: Part, arms: list[str]) -> list[str]:
    """Sources or tasks that any of ``arms`` has a record of, in the order they first appear."""
    return list(
        dict.fromkeys(
            name
            for arm in arms
            for run in results.runs_of(arm)
            for record in run.evals.values()
            for name in (record.get("leakage") or {}).get(part, {})
        )
    )


def measured_arms(results: Results) -> list[str]:
    """Arms with any record of their loss under the routing they were trained with."""
    return [arm for arm in results.arms if names(results, "sources", [arm])]


def looking_ahead_arms(results: Results) -> list[str]:
    return [arm for arm in results.arms if not results.is_causal(arm)]


def mean(found: dict[int, Entry], key: str) -> float | None:
    values = [entry[key] for entry in found.values() if entry.get(key) is not None]
    return statistics.fmean(values) if values else None


def part_of(found: dict[int, Entry], key: str) -> Estimate | None:
    """``gain``, ``look_ahead`` or ``mismatch``, over the seeds that have it."""
    return over_records([entry[key] for entry in found.values() if entry.get(key)])


def by_position(found: dict[int, Entry]) -> list[tuple[int, int, Estimate]]:
    """First position, end and gain of every stretch of the sequence, over seeds."""
    gains: dict[tuple[int, int], list[Entry]] = {}
    for entry in found.values():
        for stretch in entry.get("by_position") or []:
            gains.setdefault((stretch["start"], stretch["end"]), []).append(stretch["gain"])
    estimates = ((span, over_records(values)) for span, values in sorted(gains.items()))
    return [(*span, estimate) for span, estimate in estimates if estimate]


def iso_flop_arm(results: Results) -> str | None:
    """The first arm that is matched to another one's compute."""
    configs = results.study.get("arms") or {}
    return next((arm for arm in results.arms if configs[arm].get("iso_flop")), None)


def taught_by(results: Results, source: str) -> str | None:
    """The last phase whose mixture has ``source``."""
    name = source.removesuffix(TRAINED)
    phases = results.study["phases"].items()
    return next((p for p, phase in reversed(list(phases)) if name in phase["mixture"]), None)


def comparisons(results: Results, baseline: str) -> list[Comparison]:
    """Every measured arm against ``baseline``; non-causal ones as trained and prefix-only."""
    arms = measured_arms(results)
    return [
        _compare(results, baseline, source, boundary, arm, routing)
        for source in names(results, "sources", arms)
        for boundary in results.boundaries
        for arm in arms
        for routing in routings(results, arm)
    ]


def routings(results: Results, arm: str) -> list[Routing]:
    """As trained; for a non-causal arm also without looking ahead."""
    return ["full"] if results.is_causal(arm) else ["full", "prefix"]


def _compare(
    results: Results, baseline: str, source: str, boundary: str, arm: str, routing: Routing
) -> Comparison:
    found = entries(results, arm, boundary, "sources", source)
    other = entries(results, baseline, boundary, "sources", source)
    losses = {seed: entry[routing] for seed, entry in found.items() if routing in entry}
    paired = [seed for seed in losses if seed in other and same_tokens(other[seed], found[seed])]
    advantage = {seed: other[seed]["full"] - losses[seed] for seed in paired}
    common = _common_variance([(other[seed], found[seed]) for seed in paired], routing)
    estimate = over_seeds(list(advantage.values()), common_variance=common)
    return Comparison(
        source,
        boundary,
        arm,
        routing,
        losses,
        advantage,
        statistics.fmean(losses.values()) if losses else None,
        estimate if arm != baseline else None,
    )


def same_tokens(one: Entry, other: Entry) -> bool:
    return one["num_tokens"] == other["num_tokens"] and one.get("tokens") == other.get("tokens")


def _common_variance(pairs: list[tuple[Entry, Entry]], routing: Routing) -> float:
    """Of the mean difference, over the windows that all seeds are measured on."""
    if not pairs or not all("per_window" in entry for pair in pairs for entry in pair):
        return 0.0
    differences = [
        [x - y for x, y in zip(a["per_window"]["full"], b["per_window"][routing], strict=True)]
        for a, b in pairs
    ]
    sums = [statistics.fmean(column) for column in zip(*differences, strict=True)]
    return ratio_variance(sums, pairs[0][0]["per_window"]["num_tokens"])
