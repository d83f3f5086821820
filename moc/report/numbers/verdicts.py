"""Which arm forgets less, as far as the seeds allow to say."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from evals.statistics.estimates import Estimate
from evals.statistics.inference import LEVEL, MIN_SEEDS, Effect, holm, verdict
from evals.statistics.power import smallest_detectable
from moc.report.numbers.assay import NEITHER, TOO_FEW, UNSEEN, passed
from moc.report.numbers.effects import Versus, backward_transfer, versus
from moc.report.numbers.results import Results
from moc.report.numbers.stored import known_sources, learns, lost, stored, versus_bits

LESS, MORE = "forgets less", "forgets more"
NOTHING = "nothing to forget"
ONLY_ONE = "only one had learned it"  # at its floor, an arm has nothing to lose and wins nothing


@dataclass(frozen=True)
class Verdict:
    """One arm against another on one task, or on the bits of one source, from the boundary after it
    was taught to the last."""

    arm: str
    base: str
    task: str  # or the source
    unit: Literal["points", "kbit"]  # of the bits of a source; points are hundredths
    changes: tuple[Estimate | None, Estimate | None]  # the arm's own, and the base's
    at_stake: Estimate | None  # bits that the arm held when taught; None of a task
    taught: str  # boundary
    basis: Versus
    adjusted_p: float  # Holm's over the tasks of these two arms; NaN where there is no verdict
    words: str
    detectable: float  # difference that such a test sees with 80% power; NaN unless NEITHER

    @property
    def difference(self) -> Estimate:
        """Of the two changes; positive: ``arm`` lost less."""
        return self.basis.difference

    @property
    def scale(self) -> float:
        """From the estimates to ``unit``."""
        return 100 if self.unit == "points" else 1e-3


def bases(results: Results) -> list[str]:
    """What every arm is compared with: the iso-FLOP arm, if there is one, and the first; of a
    ladder, at every size."""
    if results.baseline is not None:
        return [results.baseline]
    found = []
    for size in dict.fromkeys(arm.size for arm in results.study.arms.values()):
        arms = [arm for arm in results.study.arms.values() if arm.size == size]
        found += [*[arm.name for arm in arms if arm.iso_flop][:1], arms[0].name]
    return list(dict.fromkeys(found))


def verdicts(results: Results) -> list[Verdict]:
    """Every arm against every one of ``bases``, each two arms once, on every earlier task."""
    return results.once("verdicts", lambda: _verdicts(results))


def outcomes(found: Sequence[Verdict]) -> str:
    """How often each was the verdict: ``2 × forgets less, 1 × nothing to forget``."""
    counts = Counter(entry.words for entry in found)
    order = [LESS, MORE, NEITHER, ONLY_ONE, NOTHING, *TOO_FEW.values(), UNSEEN]
    return ", ".join(f"{counts[words]} × {words}" for words in order if counts[words])


def _verdicts(results: Results) -> list[Verdict]:
    found: list[Verdict] = []
    done: set[frozenset[str]] = set()
    for base in bases(results):
        for arm in results.arms:
            if _comparable(results, arm, base) and frozenset((arm, base)) not in done:
                done.add(frozenset((arm, base)))
                found += _of_pair(results, arm, base)
    return found


def _comparable(results: Results, arm: str, base: str) -> bool:
    """Not itself, no arm's twin, and at the same size of a ladder."""
    mine, other = results.study.arms[arm], results.study.arms[base]
    return arm != base and mine.twin_of is None and mine.size == other.size


def _of_pair(results: Results, arm: str, base: str) -> list[Verdict]:
    found = {task: versus(results, arm, base, task) for task in results.earlier_tasks}
    shared = [s for s in known_sources(results) if all(learns(results, a, s) for a in (arm, base))]
    found |= {source: _versus_bits(results, arm, base, source) for source in shared}
    measured = {name: basis for name, basis in found.items() if basis}
    learned = {name: _num_learned(results, (arm, base), name) for name in measured}
    p_values = {name: basis.difference.p for name, basis in measured.items()}
    tested = [n for n in measured if learned[n] == 2 and math.isfinite(p_values[n])]
    adjusted = dict(zip(tested, holm([p_values[name] for name in tested]), strict=True))
    words = {
        name: _words(basis.difference, adjusted.get(name, 1.0), num_learned=learned[name])
        if passed(results, arm, base)
        else UNSEEN
        for name, basis in measured.items()
    }
    # by Holm's method, the first of those not told apart would have needed a p below this
    level = LEVEL / max(1, sum(words[name] == NEITHER for name in tested))
    return [
        _verdict(
            results,
            (arm, base, name),
            basis,
            float(adjusted.get(name, math.nan)),
            words[name],
            _detectable(basis, level) if words[name] == NEITHER else math.nan,
        )
        for name, basis in measured.items()
    ]


def _verdict(
    results: Results,
    what: tuple[str, str, str],
    basis: Versus,
    adjusted_p: float,
    words: str,
    detectable: float,
) -> Verdict:
    arm, base, name = what
    of_task = name in results.tasks
    taught = str(results.taught_task(name) if of_task else results.taught(name))
    return Verdict(
        arm,
        base,
        name,
        "points" if of_task else "kbit",
        (_change(results, arm, name), _change(results, base, name)),
        None if of_task else stored(results, arm, taught, name),
        taught,
        basis,
        adjusted_p,
        words,
        detectable,
    )


def _change(results: Results, arm: str, name: str) -> Estimate | None:
    """Of a task's score, or of the bits of a source, since it was taught."""
    if name in results.tasks:
        return backward_transfer(results, arm, name)
    gone = lost(results, arm, name)
    return gone and replace(gone, value=-gone.value, low=-gone.high, high=-gone.low)


def _versus_bits(results: Results, arm: str, base: str, source: str) -> Versus | None:
    found = versus_bits(results, arm, base, source)
    return found and Versus(*found)


def _detectable(basis: Versus, level: float) -> float:
    if basis.variances is None:
        return math.nan
    num_seeds = basis.difference.num_seeds
    return smallest_detectable(basis.variances, num_seeds, basis.num_items, level=level)


def _num_learned(results: Results, arms: tuple[str, ...], name: str) -> int:
    """How many of ``arms`` scored clearly above the baseline, or held any bits, once it had been
    taught."""
    if name in results.tasks:
        scores = [results.score(arm, str(results.taught_task(name)), name) for arm in arms]
        return sum(score is not None and not score.near for score in scores)
    held = [stored(results, arm, str(results.taught(name)), name) for arm in arms]
    return sum(bits is not None and bits.value > 0 and not bits.near_zero for bits in held)


def _words(difference: Estimate, adjusted_p: float, *, num_learned: int) -> str:
    if num_learned < 2:
        return ONLY_ONE if num_learned else NOTHING
    if difference.num_seeds < MIN_SEEDS:
        return TOO_FEW[difference.num_seeds]
    effect = Effect(difference.value, difference.low, difference.high, difference.p)
    return verdict(effect, adjusted_p, better=LESS, worse=MORE)
