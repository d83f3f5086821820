"""What came of a trial, as far as it has got: read from its runs' folders alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

from moc.config.schema import PhaseConfig, StudyConfig
from moc.plan.pause import Pause, find_pause
from moc.plan.trials import Trial
from moc.store.files import read_sound_json
from moc.store.journal import read_end
from moc.store.rundir import RunDir, StudyDir


@dataclass(frozen=True)
class Outcome:
    trial: Trial
    metric: list[float]  # bits per byte, by seed; infinite where training diverged
    tokens: int  # that it trained on, over its seeds
    share: float  # of its tokens, that it came to
    state: Literal["finished", "pruned", "diverged"]

    @property
    def mean(self) -> float:
        return fmean(self.metric)


def look(trials: StudyConfig, name: str, trial: Trial) -> Outcome | None:
    """Of the arm ``name`` at its end, or at ``trainer.pause_at`` where that is set; None if it has
    not come that far, or was scored there in another way than the rest of it is by now.

    What it came to on the way counts even if it has diverged since: it was judged by that.
    """
    phases, share = trials.arms[name].phases, trials.trainer.pause_at
    pause = find_pause(list(phases.values()), share)
    metric: list[float | None] = []
    tokens, diverged = 0, False
    for seed in trials.seeds:
        run = StudyDir(trials.dir).run(name, seed, list(phases))
        scores = [score for score in _scores(run, phases.values(), pause) if score is not None]
        if len(scores) == len(phases) if pause is None else len(scores) == pause.phase + 1:
            metric.append(fmean(scores))
            tokens += _trained(run, phases, pause)
            continue
        metric.append(None)
        if read_sound_json(run.info).get("status") == "diverged":
            diverged = True
            ends = [record.get("tokens", 0) for record in read_end(run.journal().path)]
            tokens += max(ends, default=0)
    known = [one for one in metric if one is not None]
    share = 1.0 if pause is None or share is None else share
    if diverged or not all(map(math.isfinite, known)):  # its other seeds need not be tried
        return Outcome(trial, [math.inf] * len(metric), tokens, share, "diverged")
    if len(known) < len(metric):
        return None
    return Outcome(trial, known, tokens, share, "finished")


def _scores(
    run: RunDir, phases: Iterable[PhaseConfig], pause: Pause | None
) -> Iterator[float | None]:
    """Of every phase until ``pause``: the mean over its sources, at its end or where it pauses."""
    for index, phase in enumerate(phases):
        if pause is None or index < pause.phase + pause.at_end:
            yield _mean_of(read_sound_json(run.boundary(index + 1) / "evals.json"), phase)
        elif index == pause.phase:
            record = read_sound_json(run.pause(index, pause.step))
            start = read_sound_json(run.boundary(0) / "evals.json")  # scored again if evals change
            same = record.get("eval_hash") == start.get("eval_hash")
            yield _mean_of(record, phase) if same else None


def _mean_of(record: dict[str, Any], phase: PhaseConfig) -> float | None:
    bits = record.get("bits_per_byte", {})
    known = [bits[source] for source in phase.mixture if bits.get(source) is not None]
    return fmean(known) if known else None


def _trained(run: RunDir, phases: dict[str, PhaseConfig], pause: Pause | None) -> int:
    """Tokens, without those that a sibling trained for it."""
    each = {name: phase.num_steps() * phase.tokens_per_step for name, phase in phases.items()}
    taken = sum(each.get(name, 0) for name in read_sound_json(run.shared).get("phases", []))
    return max(0, (sum(each.values()) if pause is None else pause.tokens) - taken)
