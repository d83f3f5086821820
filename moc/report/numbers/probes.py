"""How fast a forgotten score comes back: what probes brought back."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from evals.statistics.estimates import Estimate, over_seeds
from evals.statistics.savings import recovery, savings, tokens_to_reach
from moc.report.numbers.effects import change
from moc.report.numbers.read import item_records, probe_records
from moc.report.numbers.records import Probe, Run, TaskScore
from moc.report.numbers.results import Results
from moc.report.numbers.scores import Score, score_of


@dataclass(frozen=True)
class Regained:
    """One task of one run, trained again from a boundary; scores are on the probe's items."""

    taught: float  # score after the phase that taught the task
    start: float  # before the probe
    end: float  # after it
    tokens: float | None  # until the first score was back; None: not within the probe
    first_tokens: float | None  # of the phase that taught it, until that score was reached
    num_items: int


def probed(results: Results) -> list[tuple[str, str]]:
    """Every probe and the boundary it started from, in training order."""
    found = {
        (probe.index, probe.name, probe.boundary)
        for run in results.runs.values()
        for probe in run.probes
    }
    return [(name, boundary) for _, name, boundary in sorted(found)]


def regained(
    results: Results, arm: str, probe: str, boundary: str, task: str
) -> dict[int, Regained]:
    """By seed."""
    found = {}
    for run in results.runs_of(arm):
        for entry in run.probes:
            if (entry.name, entry.boundary) == (probe, boundary) and entry.curve(task):
                found[run.seed] = _regained(results, run, entry, task)
    return {seed: entry for seed, entry in found.items() if entry}


@dataclass(frozen=True)
class Brought:
    """What a probe did for one task of one arm, over seeds."""

    taught: Score | None  # on the probe's items, as the next two
    start: Score | None
    end: Score | None
    near: bool  # on all items, the score when taught reaches its baseline: all below is undefined
    forgot: bool  # whether the score was clearly lower before the probe than when taught
    recovered: Estimate | None  # share of the lost score, if it was
    tokens: float | None  # mean of the seeds that got there
    num_failed: int  # of the others
    saved: Estimate | None  # share of the tokens; None unless every seed got there both times


def brought(
    results: Results, arm: str, task: str, boundary: str, found: dict[int, Regained]
) -> Brought:
    """``found`` by seed, of a probe from ``boundary``."""
    entries = list(found.values())
    learned = str(results.taught_task(task))
    score = results.score(arm, learned, task)
    assert score is not None  # every entry has the record of a run
    reached = [entry.tokens for entry in entries if entry.tokens is not None]
    shares = [savings(entry.tokens, entry.first_tokens) for entry in entries]
    all_saved = all(math.isfinite(share) for share in shares)
    lost = change(results, arm, task, learned, boundary)
    forgot = lost is not None and lost.value < 0 and not lost.near_zero
    recovered = [recovery(entry.taught, entry.start, entry.end) for entry in entries]
    return Brought(
        taught=_level([(entry.taught, entry.num_items) for entry in entries], score),
        start=_level([(entry.start, entry.num_items) for entry in entries], score),
        end=_level([(entry.end, entry.num_items) for entry in entries], score),
        near=score.near,
        recovered=over_seeds(recovered) if forgot else None,
        forgot=forgot,
        tokens=statistics.fmean(reached) if reached else None,
        num_failed=len(entries) - len(reached),
        saved=over_seeds(shares) if all_saved else None,
    )


def _level(values: Sequence[tuple[float, int]], taught: Score) -> Score | None:
    """Mean over seeds of (score, number of items), by Wilson's interval, over the items."""
    scores = [TaskScore(v, num, taught.chance, taught.majority) for v, num in values]
    return score_of(scores, None)


def _regained(results: Results, run: Run, probe: Probe, task: str) -> Regained | None:
    """None where the score when taught is not known."""
    boundary = str(results.taught_task(task))
    at = run.at(boundary)
    score = at.tasks.get(task)
    if score is None:
        return None
    taught = score.value
    asked = {sample["doc_hash"] for sample in probe_records(probe, task)}
    same = [s["correct"] for s in item_records(at, task) if s["doc_hash"] in asked]
    if len(asked) < score.num_items and same:
        taught = statistics.fmean(same)
    curve = probe.curve(task)
    num_items = probe.num_items(task)
    # both: the first of them
    same_items = num_items == min(results.study.num_followed, score.num_items)
    return Regained(
        taught=taught,
        start=curve[0][1],
        end=curve[-1][1],
        tokens=tokens_to_reach(curve, taught),
        first_tokens=_first_tokens(results, run, boundary, task, taught) if same_items else None,
        num_items=num_items,
    )


def _first_tokens(results: Results, run: Run, phase: str, task: str, target: float) -> float | None:
    """Tokens of ``phase`` until ``task`` first scored ``target``, where it was followed."""
    begins, begin = {}, 0
    for name, end in results.phase_ends(run.arm):
        begins[name] = (begin, end)
        begin = end
    if phase not in begins:
        return None
    begin, end = begins[phase]
    tokens, values = run.series(f"trajectory/{task}")
    curve = {t - begin: v for t, v in zip(tokens, values, strict=True) if begin <= t <= end}
    return tokens_to_reach(sorted(curve.items()), target) if len(curve) > 2 else None
