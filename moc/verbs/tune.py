"""What came of a study's trials: every arm's best point, written where the study can name it."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

from moc.config.identity import config_hash
from moc.config.schema import StudyConfig
from moc.config.tuned import difference
from moc.errors import StudyIncomplete, TrainingDiverged
from moc.plan.trials import Trial, at, trials_of, tuning_of, tuning_study
from moc.report import load_results
from moc.report.numbers.results import Results
from moc.store.files import read_sound_json, whole_file
from moc.store.rundir import StudyDir
from moc.text import human, table

FILE = "tuned.yaml"
METRIC = "bits per byte of the left-out documents of each phase's sources at its end"


def choose(study: StudyConfig) -> dict[str, Any]:
    """What was tried, what it came to, and for every arm the point of the lowest metric: plain
    values, as ``tuned.yaml`` keeps them.

    Args:
        study: as loaded (``untuned``), its shapes not solved.

    Raises:
        StudyIncomplete: if a trial has not come to its end.
        TrainingDiverged: if all of an arm's did.
    """
    tuning, trial_study = tuning_of(study), tuning_study(study)
    results = load_results(trial_study.dir)
    by_arm: dict[str, list[tuple[str, Trial]]] = {name: [] for name in study.arms}
    for name, trial in trials_of(study).items():
        by_arm[trial.arm].append((name, trial))
    arms = {}
    for name, arm in study.arms.items():
        tried: list[dict[str, Any]] = [
            {"point": trial.point, "metric": _metrics(results, trial_study, trial_name)}
            for trial_name, trial in by_arm[name]
        ]
        best = min(tried, key=lambda one: fmean(one["metric"]))
        if not math.isfinite(fmean(best["metric"])):
            raise TrainingDiverged(f"every trial of arms.{name} diverged; try lower learning rates")
        chosen = at(arm, best["point"])
        phases = trial_study.arms[by_arm[name][0][0]].phases.values()
        tokens = sum(phase.num_steps() * phase.tokens_per_step for phase in phases)
        arms[name] = {
            "chosen": dict(best["point"]),  # YAML would refer from one to the other
            "at_edge": [axis for axis in tuning.axes if _is_edge(axis, best["point"], tried)],
            "settings": difference(
                {"model": asdict(arm.model), "phases": _plain(arm.phases)},
                {"model": asdict(chosen.model), "phases": _plain(chosen.phases)},
            ),
            "tuned_for": config_hash(chosen.model, chosen.phases),
            "tokens": tokens * len(tried) * len(tuning.seeds),
            "trials": tried,
        }
    return {
        "study": study.name,
        "trials": trial_study.name,
        "metric": METRIC,
        "seeds": list(tuning.seeds),
        "budget": tuning.budget,
        "hold_out": tuning.hold_out,
        "axes": tuning.axes,
        "arms": arms,
    }


def has_diverged(trials: StudyConfig, name: str) -> bool:
    """Whether a run of the trial did: its point is out, and trying again would not make it good."""
    runs = (StudyDir(trials.dir).run(name, seed) for seed in trials.seeds)
    return any(read_sound_json(run.info).get("status") == "diverged" for run in runs)


def write_tuned(study: StudyConfig, tuned: dict[str, Any]) -> Path:
    """To the file that the study names, else beside its trials."""
    path = Path(study.tuned) if study.tuned else tuning_study(study).dir / FILE
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
        values = [fmean(trial["metric"]) for trial in arm["trials"]]
        rows[name] = [
            ", ".join(f"{axis} {value}" for axis, value in arm["chosen"].items()),
            f"{min(values):.4f}",
            f"{max(values):.4f}" if math.isfinite(max(values)) else "diverged",
            str(len(values)),
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


def _metrics(results: Results, trials: StudyConfig, name: str) -> list[float]:
    """By seed; infinite where any of them diverged."""
    if has_diverged(trials, name):
        return [math.inf] * len(trials.seeds)
    found = []
    for seed in trials.seeds:
        run = results.runs[name, seed]
        ends = [
            [run.at(phase).bits_per_byte.get(source) for source in config.mixture]
            for phase, config in trials.arms[name].phases.items()
        ]
        known = [[value for value in values if value is not None] for values in ends]
        if all(known):
            found.append(fmean(fmean(values) for values in known))
        else:
            raise StudyIncomplete(f"trial {name} seed {seed} has not come to its end")
    return found


def _is_edge(axis: str, best: dict[str, Any], tried: list[dict[str, Any]]) -> bool:
    """Of an axis of three or more numbers that moves the arm at all."""
    values = {trial["point"][axis] for trial in tried}
    numbers = sorted(v for v in values if isinstance(v, (int, float)) and not isinstance(v, bool))
    return len(numbers) > 2 and best[axis] in (numbers[0], numbers[-1])


def _plain(phases: dict[str, Any]) -> dict[str, Any]:
    return {name: asdict(phase) for name, phase in phases.items()}
