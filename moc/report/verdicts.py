"""Which arm forgets less, in words, and what that rests on."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from dataclasses import dataclass

from evals.statistics.inference import Effect, holm, verdict
from moc.report.cells import (
    MISSING,
    interval,
    items_text,
    marked,
    probability,
    signed,
    table_of,
)
from moc.report.effects import backward_transfer, versus
from moc.report.estimates import Estimate
from moc.report.layout import Table
from moc.report.looking_ahead import iso_flop_arm
from moc.report.raw import Row
from moc.report.results import Results

MIN_SEEDS = 3  # a claim needs as many
LESS, MORE, NEITHER = "forgets less", "forgets more", "not distinguishable"
NOTHING = "nothing to forget"
ONLY_ONE = "only one had learned it"  # at its floor, an arm has nothing to lose and wins nothing
TOO_FEW = {1: "one seed supports no claim", 2: "two seeds support no claim"}


@dataclass(frozen=True)
class Verdict:
    """One arm against another on one task, from the boundary after it was taught to the last."""

    arm: str
    base: str
    task: str
    taught: str  # boundary
    difference: Estimate  # of the two changes; positive: ``arm`` lost less
    adjusted_p: float  # Holm's over the tasks of these two arms; NaN where there is no verdict
    words: str


def bases(results: Results) -> list[str]:
    """What every arm is compared with: the iso-FLOP arm, if there is one, and the first."""
    if results.baseline is not None:
        return [results.baseline]
    arms = [iso_flop_arm(results), *results.arms[:1]]
    return list(dict.fromkeys(arm for arm in arms if arm is not None))


def verdicts(results: Results) -> list[Verdict]:
    """Every arm against every one of ``bases``, each two arms once, on every earlier task."""
    return results.once("verdicts", lambda: _verdicts(results))


def said(results: Results) -> list[str]:
    """The verdicts in sentences; empty where there was nothing to compare."""
    found = verdicts(results)
    sentences = [text for base in bases(results) for text in _against(results, base, found)]
    if sentences and (caution := results.caution()):
        return [caution, *sentences]
    return sentences


def differences(results: Results) -> list[Table]:
    """One table per base: the changes of two arms side by side, their difference, the verdict."""
    return [_table(results, base) for base in bases(results)]


def _verdicts(results: Results) -> list[Verdict]:
    found: list[Verdict] = []
    done: set[frozenset[str]] = set()
    for base in bases(results):
        for arm in results.arms:
            if arm != base and frozenset((arm, base)) not in done:
                done.add(frozenset((arm, base)))
                found += _of_pair(results, arm, base)
    return found


def _of_pair(results: Results, arm: str, base: str) -> list[Verdict]:
    found = {task: versus(results, arm, base, task) for task in results.earlier_tasks}
    measured = {task: difference for task, difference in found.items() if difference}
    learned = {task: _num_learned(results, (arm, base), task) for task in measured}
    tested = [t for t in measured if learned[t] == 2 and math.isfinite(measured[t].p)]
    adjusted = dict(zip(tested, holm([measured[task].p for task in tested]), strict=True))
    return [
        Verdict(
            arm,
            base,
            task,
            str(results.taught_task(task)),
            difference,
            float(adjusted.get(task, math.nan)),
            _words(difference, adjusted.get(task, 1.0), num_learned=learned[task]),
        )
        for task, difference in measured.items()
    ]


def _num_learned(results: Results, arms: tuple[str, ...], task: str) -> int:
    """How many of ``arms`` scored clearly above the baseline once the task had been taught."""
    scores = [results.score(arm, str(results.taught_task(task)), task) for arm in arms]
    return sum(score is not None and not score.near for score in scores)


def _words(difference: Estimate, adjusted_p: float, *, num_learned: int) -> str:
    if num_learned < 2:
        return ONLY_ONE if num_learned else NOTHING
    if difference.num_seeds < MIN_SEEDS:
        return TOO_FEW[difference.num_seeds]
    effect = Effect(difference.value, difference.low, difference.high, difference.p)
    return verdict(effect, adjusted_p, better=LESS, worse=MORE)


def _against(results: Results, base: str, found: list[Verdict]) -> list[str]:
    """How the comparisons with ``base`` came out, and those that say something."""
    mine = [entry for entry in found if entry.base == base]
    if not mine:
        return []
    name = results.label(base)
    pairs = "comparison" if len(mine) == 1 else "comparisons"
    summary = f"Against {name}, {len(mine)} {pairs} of an arm on a task: {_outcomes(mine)}."
    if (num_pairs := len({(entry.arm, entry.base) for entry in found})) > 1:
        summary += f" p is adjusted over tasks, not over the {num_pairs} pairs of arms."
    claims = []
    for arm in dict.fromkeys(entry.arm for entry in mine):
        for words in (LESS, MORE):
            tasks = [e for e in mine if (e.arm, e.words) == (arm, words)]
            on = ", ".join(f"{e.task} ({_points(e)})" for e in tasks)
            claims += [f"{results.label(arm)} {words} than {name}: {on}."] * bool(tasks)
    widths = [
        (entry.difference.high - entry.difference.low) / 2
        for entry in mine
        if entry.words == NEITHER and entry.difference.has_interval
    ]
    if not claims and widths:
        summary += (
            f" No arm can be told from {name} by what it forgets. That is no proof of equality: "
            f"half of these intervals reach {100 * statistics.median(widths):.1f} points or more "
            "to either side, so that smaller differences may have gone unseen."
        )
    return [summary, *claims]


def _outcomes(found: list[Verdict]) -> str:
    counts = Counter(entry.words for entry in found)
    order = [LESS, MORE, NEITHER, ONLY_ONE, NOTHING, *TOO_FEW.values()]
    return ", ".join(f"{counts[words]} × {words}" for words in order if counts[words])


def _points(entry: Verdict) -> str:
    difference = signed(100 * entry.difference.value, 1)
    around = interval(entry.difference, digits=1, scale=100)
    return f"{difference} points{around}, adjusted p {probability(entry.adjusted_p)}"


def _table(results: Results, base: str) -> Table:
    name, last = results.label(base), results.boundaries[-1]
    found = [entry for entry in verdicts(results) if entry.base == base]
    found.sort(key=lambda entry: results.tasks.index(entry.task))  # stable: arms keep their order
    rows = [
        [
            f"{entry.task}, since {entry.taught}",
            results.label(entry.arm),
            entry.words,
            marked(results, entry.difference),
            probability(entry.adjusted_p),
            probability(entry.difference.p),
            marked(results, backward_transfer(results, entry.arm, entry.task)),
            marked(results, backward_transfer(results, base, entry.task)),
        ]
        for entry in found
    ]
    raw: list[Row] = [
        Row()
        | {"arm": entry.arm, "base": base, "task": entry.task, "from": entry.taught, "to": last}
        | {"num_seeds": entry.difference.num_seeds, "difference": entry.difference.value}
        | {"low": entry.difference.low, "high": entry.difference.high}
        | {"p": entry.difference.p, "adjusted_p": entry.adjusted_p, "verdict": entry.words}
        for entry in found
    ]
    header = ["task", "arm", "verdict", "difference", "adjusted p", "p"]
    header += ["its change", f"change of {name}"]
    caption = (
        f"Difference-in-differences against {name}: change of the score until after {last}, in "
        f"points {items_text(results)}: {_outcomes(found)}"
    )
    notes = [
        "Positive difference: the arm lost less. Adjusted p: Holm's, over the tasks of a pair of "
        f"arms. {NOTHING.capitalize()}: neither arm had clearly learned the task. "
        f"{ONLY_ONE.capitalize()}: the other was at its baseline and had nothing to lose. "
        f"{MISSING}: not tested.",
    ]
    return table_of(
        results,
        f"differences-{base}",
        caption,
        header,
        rows,
        num_keys=2,
        notes=notes,
        raw=raw,
    )
