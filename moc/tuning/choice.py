"""What came of a study's trials: every arm's best point, written where the study can name it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from moc.config.schema import StudyConfig
from moc.config.tuned import difference, tuned_for
from moc.config.tuning import TuningConfig, interval_of
from moc.errors import TrainingDiverged
from moc.plan.axes import Point, at
from moc.plan.trials import tuning_of, tuning_study
from moc.store.files import whole_file
from moc.text import human, table
from moc.tuning.outcomes import Outcome

FILE = "tuned.yaml"
METRIC = "bits per byte of the left-out documents of each phase's sources at its end"
_EDGE = 0.05  # of a range


def choose(study: StudyConfig, outcomes: Mapping[str, Sequence[Outcome]]) -> dict[str, Any]:
    """What was tried, what it came to, and for every arm the point of the lowest metric: plain
    values, as ``tuned.yaml`` keeps them.

    Args:
        study: as loaded (``untuned``), its shapes not solved.
        outcomes: of every arm's trials.

    Raises:
        TrainingDiverged: if all of an arm's did.
    """
    tuning, arms = tuning_of(study), {}
    for name, arm in study.arms.items():
        whole = [one for one in outcomes[name] if one.state == "finished"]
        if not whole:
            raise TrainingDiverged(f"every trial of arms.{name} diverged; try lower learning rates")
        best = min(whole, key=lambda one: one.mean).trial.point
        chosen = at(arm, best)
        tried = [one.trial.point for one in outcomes[name]]
        arms[name] = {
            "chosen": dict(best),  # YAML would refer from one to the other
            "at_edge": [axis for axis in best if _is_edge(tuning, axis, best, tried)],
            "settings": difference(
                {"model": asdict(arm.model), "phases": _plain(arm.phases)},
                {"model": asdict(chosen.model), "phases": _plain(chosen.phases)},
            ),
            "tuned_for": tuned_for(chosen),
            "tokens": sum(one.tokens for one in outcomes[name]),
            "trials": [
                {
                    "point": dict(one.trial.point),
                    "metric": one.metric,
                    "share": one.share,
                    "state": one.state,
                    "tokens": one.tokens,
                }
                for one in outcomes[name]
            ],
        }
    return {
        "study": study.name,
        "trials": tuning_study(study, {}).name,
        "metric": METRIC,
        "size": tuning.size,
        "sampler": tuning.sampler,
        "pruner": tuning.pruner,
        "asked": None if tuning.sampler == "grid" else tuning.trials,  # of every arm
        "seeds": list(tuning.seeds),
        "budget": tuning.budget,
        "hold_out": tuning.hold_out,
        "axes": tuning.axes,
        "arms": arms,
    }


def write_tuned(study: StudyConfig, tuned: dict[str, Any]) -> Path:
    """To the file that the study names, else beside its trials."""
    path = Path(study.tuned) if study.tuned else tuning_study(study, {}).dir / FILE
    with whole_file(path, sync=True) as partial:
        partial.write_text(
            "# Written by moc tune; a study names it: tuned: <this file>\n"
            + yaml.safe_dump(tuned, sort_keys=False)
        )
    return path


def render_tuned(tuned: dict[str, Any], path: Path, named: bool) -> str:
    """What was chosen, for a terminal."""
    rows = {}
    for name, arm in tuned["arms"].items():
        states = Counter(trial["state"] for trial in arm["trials"])
        whole = [trial for trial in arm["trials"] if trial["state"] == "finished"]
        values = [math.fsum(trial["metric"]) / len(trial["metric"]) for trial in whole]
        rows[name] = [
            ", ".join(f"{axis} {value}" for axis, value in arm["chosen"].items()) or "as it is",
            f"{min(values):.4f}",
            f"{max(values):.4f}",
            ", ".join(f"{count} {state}" for state, count in states.items()),
            human(arm["tokens"]),
        ]
    header = ["arm", "chosen", "bits/byte", "worst", "trials", "tokens spent"]
    lines = [*table(header, rows), "", f"metric: {tuned['metric']}"]
    for name, arm in tuned["arms"].items():
        for axis in arm["at_edge"]:
            lines.append(
                f"{name}: {axis} {arm['chosen'][axis]} lies at the edge of what was tried; "
                "the best may lie beyond: widen the axis"
            )
    use = "" if named else f"; the study uses it with: tuned: {path}"
    return "\n".join([*lines, f"written: {path}{use}"])


def _is_edge(tuning: TuningConfig, axis: str, best: Point, tried: Sequence[Point]) -> bool:
    """Of a range, its first or last twentieth; of three or more numbers that move the arm at all,
    the first or last."""
    interval = interval_of(tuning.axes[axis])
    if interval is not None:
        scale = math.log if interval.log else float
        low, high = scale(interval.low), scale(interval.high)
        return not _EDGE <= (scale(best[axis]) - low) / (high - low) <= 1 - _EDGE
    values = [point[axis] for point in tried]
    numbers = sorted({v for v in values if isinstance(v, (int, float)) and not isinstance(v, bool)})
    return len(numbers) > 2 and best[axis] in (numbers[0], numbers[-1])


def _plain(phases: dict[str, Any]) -> dict[str, Any]:
    return {name: asdict(phase) for name, phase in phases.items()}
