"""Every trial as far as it is worth it, whoever trains it: in batches, each pruned at its rungs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from moc.config.schema import StudyConfig
from moc.errors import ConfigError, RunFailed, RunHeld, StudyIncomplete, TrainingDiverged
from moc.launch.launcher import Launcher
from moc.plan.arms import solved_arms
from moc.plan.axes import Point
from moc.plan.trials import Trial, at_one_size, grid_of, trial_name, tuning_of, tuning_study
from moc.run.pause import mark_pruned
from moc.run.settings import last_run
from moc.store.rundir import StudyDir
from moc.study import run_study
from moc.tuning.choice import choose, write_tuned
from moc.tuning.outcomes import Outcome, look
from moc.tuning.search import Search

# Brings these arms of a study to its ``trainer.pause_at``; true: for the last time, with a report.
Train = Callable[[StudyConfig, Sequence[str], bool], None]


def tune_study(
    study: StudyConfig, *, launcher: Launcher | None = None
) -> tuple[dict[str, Any], Path]:
    """Train every arm's trials, choose, and write down what was chosen; what is complete is not
    trained again.

    Args:
        study: as loaded without what ``tuned`` names.
        launcher: see ``run_study``.

    Returns:
        What was chosen (``moc.tuning.choice.choose``), and the file that says so.

    Raises:
        ConfigError: if the study cannot be tuned as it says.
        StudyIncomplete: if a trial failed for another reason than divergence.
        TrainingDiverged: if all trials of an arm did; single ones may.
        CheckpointError, RunHeld, StudyInterrupted, KeyboardInterrupt: see ``run_study``.
    """

    def train(trials: StudyConfig, arms: Sequence[str], last: bool) -> None:
        with suppress(TrainingDiverged, RunFailed):  # a point as bad as can be, or not tried
            run_study(trials, arms=arms, launcher=launcher, report=last)

    study = at_one_size(study)
    tuned = choose(study, run_trials(study, train))
    return tuned, write_tuned(study, tuned)


def first_trials(study: StudyConfig) -> StudyConfig:
    """The study of trials as it begins: a grid whole, else every arm's first batch.

    Raises:
        ConfigError: if the study cannot be tuned as it says.
    """
    study = at_one_size(study)
    return tuning_study(study, _first(study))


def run_trials(study: StudyConfig, train: Train) -> dict[str, list[Outcome]]:
    """What came of every arm's trials, in the order in which they were asked for.

    Nothing of it depends on what was on disk before, or on who trains which trial when: a sampler
    is asked for a batch of every arm, told of it in that order, and asked again.

    Raises:
        ConfigError, StudyIncomplete: see ``tune_study``.
    """
    study = replace(study, arms=solved_arms(study))
    trials = _Trials(study, train)
    if tuning_of(study).sampler == "grid":
        trials.named = grid_of(study)
        trials.ended = trials.bring(trials.named, None)
    else:
        _sample(study, trials)
    trials.close()
    return {
        arm: [trials.ended[name] for name, trial in trials.named.items() if trial.arm == arm]
        for arm in study.arms
    }


class _Trials:
    def __init__(self, study: StudyConfig, train: Train) -> None:
        self.study, self.train = study, train
        self.named: dict[str, Trial] = {}  # by the names of their arms, as they were asked for
        self.ended: dict[str, Outcome] = {}

    def name(self, arm: str, point: Point) -> str:
        """Of the trial there, new or not."""
        trial, digits = Trial(arm, point), 6
        while self.named.get(name := trial_name(arm, point, digits), trial) != trial:
            digits += 1  # another point has that name
        self.named[name] = trial
        return name

    def bring(self, names: Iterable[str], share: float | None) -> dict[str, Outcome]:
        """All of them to ``share`` of their tokens; None: to their end.

        Raises:
            StudyIncomplete: if one does not get there, for another reason than divergence.
        """
        trials = self._until(share)
        names = list(names)
        if left := [name for name in names if look(trials, name, self.named[name]) is None]:
            self.train(self._with_later(trials), left, False)
        found = {}
        for name in names:
            outcome = look(trials, name, self.named[name])
            if outcome is None:
                where = "its end" if share is None else f"{share:.1%} of its tokens"
                raise StudyIncomplete(f"trial {name} has not come to {where}")
            found[name] = outcome
        return found

    def prune(self, name: str, outcome: Outcome) -> None:
        self.ended[name] = replace(outcome, state="pruned")
        tuning, folder = tuning_of(self.study), StudyDir(tuning_study(self.study, {}).dir)
        best = f"the best 1/{tuning.reduction} of its arm at {outcome.share:.1%} of its tokens"
        for seed in tuning.seeds:
            with suppress(RunHeld):  # by a second command like this one, which does so, too
                mark_pruned(folder.run(name, seed), f"not among {best}")

    def close(self) -> None:
        """A last pass over all: what is on disk is what the settings of today would make, and there
        is a report.

        Raises:
            ConfigError: if a sampler was told other scores than they have now.
        """
        trials = self._until(None)
        whole = [name for name, outcome in self.ended.items() if outcome.state == "finished"]
        if not whole:
            return
        self.train(self._with_later(trials), whole, True)
        for name in whole:
            outcome = look(trials, name, self.named[name])
            if outcome != self.ended[name] and tuning_of(self.study).sampler != "grid":
                raise ConfigError(
                    f"trial {name} was scored in another way when the sampler was told of it; "
                    "set evals as they were, or give the study another name (name=...)"
                )
            assert outcome is not None  # its boundaries are there
            self.ended[name] = outcome

    def _until(self, share: float | None) -> StudyConfig:
        trials = tuning_study(self.study, self.named)
        return replace(trials, trainer=replace(trials.trainer, pause_at=share))

    def _with_later(self, trials: StudyConfig) -> StudyConfig:
        """And those that came after them, before one of these was removed: they are still there,
        and a sampler that is told the same draws them again."""
        there = {run.arm for run in StudyDir(trials.dir).runs()}
        if tuning_of(self.study).sampler == "grid" or there <= trials.arms.keys():
            return trials
        before = last_run(trials)
        if before is None or not trials.arms.keys() <= before.arms.keys():
            return trials  # of another search: refused
        return replace(trials, arms=trials.arms | before.arms | trials.arms)


def _sample(study: StudyConfig, trials: _Trials) -> None:
    tuning = tuning_of(study)
    searches = {name: Search(tuning, name, arm) for name, arm in study.arms.items()}
    at_rung: dict[str, dict[int, float]] = {}  # metrics, by trial
    for first in range(0, tuning.trials, tuning.batch):
        numbers = range(first, min(first + tuning.batch, tuning.trials))
        asked = {
            (arm, number): trials.name(arm, search.ask())
            for arm, search in searches.items()
            for number in numbers
        }
        # A point that was drawn before is what it was.
        new = {name: key for key, name in reversed(asked.items()) if name not in trials.ended}
        going = {key: name for key, name in asked.items() if new.get(name) == key}
        for rung, share in enumerate(tuning.shares()):
            found = trials.bring(going.values(), share)
            for (arm, number), name in list(going.items()):
                metric = at_rung.setdefault(name, {})[rung] = found[name].mean
                if found[name].state == "diverged":
                    trials.ended[name] = found[name]
                elif searches[arm].prunes(number, rung, metric):
                    trials.prune(name, found[name])
                else:
                    continue
                del going[arm, number]
        trials.ended |= trials.bring(going.values(), None)
        for (arm, number), name in asked.items():
            outcome = trials.ended[name]
            if outcome.state == "pruned":
                itself = new.get(name) == (arm, number)
                searches[arm].tell_pruned(number, {} if itself else at_rung[name])
            else:
                searches[arm].tell(number, outcome.mean)


def _first(study: StudyConfig) -> dict[str, Trial]:
    tuning = tuning_of(study)
    if tuning.sampler == "grid":
        return grid_of(study)
    found = {}
    for name, arm in solved_arms(study).items():
        search = Search(tuning, name, arm)
        for _ in range(min(tuning.batch, tuning.trials)):
            point = search.ask()
            found[trial_name(name, point)] = Trial(name, point)
    return found
