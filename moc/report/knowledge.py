"""What is still known: bits of facts stored, and how fast a forgotten score comes back."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass

from evals.statistics.forgetting import knowledge_bits
from evals.statistics.savings import recovery, savings, tokens_to_reach
from moc.report.cells import (
    MISSING,
    NEAR_ZERO_NOTE,
    UNDEFINED,
    count,
    interval,
    level,
    marked,
    over_text,
    plain,
    table_of,
)
from moc.report.effects import change
from moc.report.estimates import Estimate, over_seeds
from moc.report.layout import Table
from moc.report.raw import Row
from moc.report.results import NEAR, NEAR_NOTE, Results
from moc.report.runs import Probe, Run
from moc.report.scores import Score, score_of

Bits = dict[int, float]  # by seed


def stored(results: Results) -> Table:
    """Bits of knowledge about people at every boundary, and how many were lost since."""
    rows: list[list[str]] = []
    raw: list[Row] = []
    last = results.boundaries[-1]
    for task in results.tasks:
        taught = results.taught_task(task)
        for arm in results.arms if taught is not None else []:
            found = {b: _bits(results, arm, b, task) for b in results.boundaries}
            if not any(found.values()):
                continue
            start, end = found[str(taught)], found[last]
            lost = [start[seed] - end[seed] for seed in start if seed in end]
            cells = [_thousands(list(bits.values())) for bits in found.values()]
            since = MISSING if taught == last else marked(results, over_seeds(lost), scale=1e-3)
            rows.append([f"{task}, since {taught}", results.label(arm), *cells, since])
            raw += [
                {"task": task, "arm": arm, "seed": seed, "boundary": boundary, "bits": value}
                for boundary, bits in found.items()
                for seed, value in bits.items()
            ]
    header = ["task", "arm", *results.boundaries, "lost since taught"]
    caption = f"Knowledge about people, thousand bits stored at least{_over(results)}"
    notes = [
        "Per attribute: log2 of the values that it can take minus the bits that the right answer "
        "takes to say, on average over questions and not less than 0; times the people there are. "
        "The city of an employer follows from the employer and is not counted. Method: arXiv "
        "2404.05405.",
        NEAR_ZERO_NOTE,
    ]
    return table_of(results, "knowledge", caption, header, rows, num_keys=2, notes=notes, raw=raw)


@dataclass(frozen=True)
class Regained:
    """One task of one run, trained again from a boundary; scores are on the probe's items."""

    taught: float  # score after the phase that taught the task
    start: float  # before the probe
    end: float  # after it
    tokens: float | None  # until the first score was back; None: not within the probe
    first_tokens: float | None  # of the phase that taught it, until that score was reached
    num_items: int


def savings_table(results: Results) -> Table:
    """What every probe brought back, and how fast."""
    rows: list[list[str]] = []
    raw: list[Row] = []
    for probe, boundary in probed(results):
        for task in results.tasks:
            taught = results.taught_task(task)
            if taught not in results.phases[: results.phases.index(boundary)]:
                continue  # nothing has happened to it since
            for arm in results.arms:
                found = regained(results, arm, probe, boundary, task)
                if found:
                    keys = [f"{probe} after {boundary}", task, results.label(arm)]
                    rows.append([*keys, *_regained_cells(results, arm, task, boundary, found)])
                raw += [
                    {"probe": probe, "boundary": boundary, "task": task, "arm": arm, "seed": seed}
                    | vars(entry)
                    for seed, entry in found.items()
                ]
    header = ["probe", "task", "arm", "taught, %", "before → after probe, %"]
    header += ["recovered, %", "tokens to regain", "savings, %"]
    caption = f"Forgotten, or out of reach? Training again on a copy{_over(results)}"
    notes = [
        "Recovered: share of the lost score that the probe brought back. Tokens to regain: until "
        "the score was first what it was when taught, on the probe's items. Savings: 1 minus these "
        "over the tokens that learning it first took, where that phase followed scores on the same "
        f"items, if every seed got there both times (Ebbinghaus). {UNDEFINED.capitalize()}: the "
        "score when taught was not clearly above its baseline, or not clearly lower by now.",
        "Relearning has a learning rate and schedule of its own, and a score that the first phase "
        "reached only late makes savings high by construction.",
        f"{NEAR_NOTE}.",
    ]
    return table_of(results, "savings", caption, header, rows, num_keys=3, notes=notes, raw=raw)


def probed(results: Results) -> list[tuple[str, str]]:
    """Every probe and the boundary it started from, in training order."""
    found = {
        (probe.record["index"], probe.name, probe.boundary)
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


def _over(results: Results) -> str:
    return " [95% t-interval over seeds]" * (len(results.seeds) > 1) + over_text(results)


def _bits(results: Results, arm: str, boundary: str, task: str) -> Bits:
    source = results.source_of(task)
    config = results.study.get("data", {}).get(source, {})
    found = {}
    for run in results.runs_of(arm) if "num_people" in config else ():
        record = run.evals.get(boundary, {}).get("tasks", {}).get(task, {})
        # written answers have no probability
        scored = record.get("bits_per_byte") is not None
        samples = run.samples(boundary, task) if scored else []
        if samples and all("pool_size" in s and "gold_bits" in s for s in samples):
            found[run.seed] = knowledge_bits(samples, config["num_people"])
    return found


def _thousands(bits: list[float]) -> str:
    return f"{statistics.fmean(bits) / 1000:.1f}" if bits else MISSING


def _regained(results: Results, run: Run, probe: Probe, task: str) -> Regained | None:
    """None where the score when taught is not known."""
    boundary = str(results.taught_task(task))
    record = run.evals.get(boundary, {}).get("tasks", {}).get(task)
    if record is None:
        return None
    taught = record["value"]
    asked = {sample["doc_hash"] for sample in probe.samples(task)}
    same = [s["correct"] for s in run.samples(boundary, task) if s["doc_hash"] in asked]
    if len(asked) < record["num_items"] and same:
        taught = statistics.fmean(same)
    curve = probe.curve(task)
    num_items = probe.num_items(task)
    followed = (results.study["evals"].get("in_phase") or {}).get("num_items", 0)
    same_items = num_items == min(followed, record["num_items"])  # both: the first of them
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


def _regained_cells(
    results: Results, arm: str, task: str, boundary: str, found: dict[int, Regained]
) -> list[str]:
    entries = list(found.values())
    learned = str(results.taught_task(task))
    score = results.score(arm, learned, task)
    assert score is not None  # every entry has the record of a run
    taught, start, end = (_level(entries, n, score) for n in ("taught", "start", "end"))
    if score.near and not taught.startswith(NEAR):
        taught = f"{NEAR} {taught}"  # on all items it reaches its baseline
    levels = [taught, f"{start} → {end}"]
    if score.near:
        return [*levels, UNDEFINED, UNDEFINED, UNDEFINED]
    shares = [recovery(entry.taught, entry.start, entry.end) for entry in entries]
    saved = [savings(entry.tokens, entry.first_tokens) for entry in entries]
    reached = [entry.tokens for entry in entries if entry.tokens is not None]
    if len(reached) == len(entries):
        tokens = count(statistics.fmean(reached))
    else:  # the mean of those that got there would be of the fastest alone
        failed = len(entries) - len(reached)
        tokens = "not regained" + f" by {failed} of {len(entries)} seeds" * bool(reached)
    all_saved = all(math.isfinite(share) for share in saved)
    lost = change(results, arm, task, learned, boundary)
    forgot = lost is not None and lost.value < 0 and not lost.near_zero
    recovered = _share(over_seeds(shares)) if forgot else UNDEFINED
    return [*levels, recovered, tokens, _share(over_seeds(saved)) if all_saved else MISSING]


def _level(entries: list[Regained], name: str, taught: Score) -> str:
    """Mean over seeds, with the mark of its baseline: by Wilson's interval, over the items."""
    baselines = {"chance": taught.chance, "majority": taught.majority}
    values = [{"value": getattr(e, name), "num_items": e.num_items} | baselines for e in entries]
    return level(score_of(values, None))


def _share(estimate: Estimate | None) -> str:
    if estimate is None:
        return MISSING
    return plain(100 * estimate.value, 0) + interval(estimate, digits=0, scale=100)
