"""Which arm forgets less, as far as the seeds allow to say."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from evals.statistics.estimates import Estimate
from evals.statistics.inference import LEVEL, MIN_SEEDS, Effect, holm, verdict
from evals.statistics.power import smallest_detectable
from moc.report.numbers.effects import Versus, versus
from moc.report.numbers.results import Results

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
    basis: Versus
    adjusted_p: float  # Holm's over the tasks of these two arms; NaN where there is no verdict
    words: str
    detectable: float  # difference that such a test sees with 80% power; NaN unless NEITHER

    @property
    def difference(self) -> Estimate:
        """Of the two changes; positive: ``arm`` lost less."""
        return self.basis.difference


def bases(results: Results) -> list[str]:
    """What every arm is compared with: the iso-FLOP arm, if there is one, and the first."""
    if results.baseline is not None:
        return [results.baseline]
    arms = [results.iso_flop_arm, *results.arms[:1]]
    return list(dict.fromkeys(arm for arm in arms if arm is not None))


def verdicts(results: Results) -> list[Verdict]:
    """Every arm against every one of ``bases``, each two arms once, on every earlier task."""
    return results.once("verdicts", lambda: _verdicts(results))


def outcomes(found: Sequence[Verdict]) -> str:
    """How often each was the verdict: ``2 × forgets less, 1 × nothing to forget``."""
    counts = Counter(entry.words for entry in found)
    order = [LESS, MORE, NEITHER, ONLY_ONE, NOTHING, *TOO_FEW.values()]
    return ", ".join(f"{counts[words]} × {words}" for words in order if counts[words])


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
    measured = {task: basis for task, basis in found.items() if basis}
    learned = {task: _num_learned(results, (arm, base), task) for task in measured}
    p_values = {task: basis.difference.p for task, basis in measured.items()}
    tested = [t for t in measured if learned[t] == 2 and math.isfinite(p_values[t])]
    adjusted = dict(zip(tested, holm([p_values[task] for task in tested]), strict=True))
    words = {
        task: _words(basis.difference, adjusted.get(task, 1.0), num_learned=learned[task])
        for task, basis in measured.items()
    }
    # by Holm's method, the first of those not told apart would have needed a p below this
    level = LEVEL / max(1, sum(words[task] == NEITHER for task in tested))
    return [
        Verdict(
            arm,
            base,
            task,
            str(results.taught_task(task)),
            basis,
            float(adjusted.get(task, math.nan)),
            words[task],
            _detectable(basis, level) if words[task] == NEITHER else math.nan,
        )
        for task, basis in measured.items()
    ]


def _detectable(basis: Versus, level: float) -> float:
    if basis.variances is None:
        return math.nan
    num_seeds = basis.difference.num_seeds
    return smallest_detectable(basis.variances, num_seeds, basis.num_items, level=level)


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
