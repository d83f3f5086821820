"""What came of a trial, as far as it has got: read from its runs' folders alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
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
    metric, tokens = [], 0
    for seed in trials.seeds:
        run = StudyDir(trials.dir).run(name, seed, list(phases))
        scores = list(_scores(run, list(phases.values()), pause))
        if None not in scores:
            metric.append(_finite(fmean(score for score in scores if score is not None)))
            tokens += _trained(run, phases, pause)
        elif read_sound_json(run.info).get("status") == "diverged":
            metric.append(math.inf)
            ends = [record.get("tokens", 0) for record in read_end(run.journal().path)]
            tokens += max(ends, default=0)
        else:
            return None
    state: Literal["finished", "diverged"] = (
        "finished" if math.isfinite(fmean(metric)) else "diverged"
    )
    return Outcome(trial, metric, tokens, 1.0 if pause is None or share is None else share, state)


def _scores(
    run: RunDir, phases: Sequence[PhaseConfig], pause: Pause | None
) -> Iterator[float | None]:
    """Of every phase until ``pause``: the mean over its sources, at its end or where it pauses."""
    whole = len(phases) if pause is None else pause.phase + pause.at_end
    for index, phase in enumerate(phases[:whole]):
        yield _mean_of(read_sound_json(run.boundary(index + 1) / "evals.json"), phase)
    if pause is not None and not pause.at_end:
        record = read_sound_json(run.pause(pause.phase, pause.step))
        start = read_sound_json(run.boundary(0) / "evals.json")  # scored again if evals change
        same = record.get("eval_hash") == start.get("eval_hash")
        yield _mean_of(record, phases[pause.phase]) if same else None


def _mean_of(record: dict[str, Any], phase: PhaseConfig) -> float | None:
    bits = record.get("bits_per_byte", {})
    known = [bits[source] for source in phase.mixture if bits.get(source) is not None]
    return fmean(known) if known else None


def _trained(run: RunDir, phases: dict[str, PhaseConfig], pause: Pause | None) -> int:
    """Tokens, without those that a sibling trained for it."""
    each = {name: phase.num_steps() * phase.tokens_per_step for name, phase in phases.items()}
    taken = sum(each.get(name, 0) for name in read_sound_json(run.shared).get("phases", []))
    return max(0, (sum(each.values()) if pause is None else pause.tokens) - taken)


def _finite(metric: float) -> float:
    return metric if math.isfinite(metric) else math.inf
