"""Samplers and pruning: what is asked for, how far it goes, and that nothing else decides it."""

from __future__ import annotations

import math
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from moc.config.load import load_study
from moc.config.schema import ArmConfig, StudyConfig
from moc.config.tuning import TuningConfig
from moc.errors import ConfigError, StudyIncomplete
from moc.plan.pause import find_pause
from moc.plan.trials import tuning_study
from moc.store.files import read_json
from moc.store.rundir import StudyDir
from moc.tuning.choice import choose, render_tuned
from moc.tuning.loop import first_trials, run_trials
from moc.tuning.search import Search
from tests.support.fake_trials import FakeTraining, bowl
from tests.support.helpers_training import tiny_study, write_tiny_study

WIDE = {
    "lr_scale": {"low": 0.1, "high": 30, "log": True},
    "lr_scale.bank": {"low": 0.01, "high": 10.0, "log": True},
}
ASHA = {"sampler": "tpe", "pruner": "asha", "trials": 24, "batch": 6}


def searched(folder: Path, **options: Any) -> StudyConfig:
    folder.mkdir(exist_ok=True)
    study = tiny_study(folder)
    study.tuning = TuningConfig(**{"axes": WIDE, "seeds": [7, 8]} | options)
    return study


@pytest.mark.parametrize(
    ("sampler", "pruner", "near"),
    [("random", "none", 3.0), ("tpe", "none", 1.6), ("tpe", "asha", 1.6)],
)
def test_the_known_best_of_a_wide_space_is_found(
    tmp_path: Path, sampler: str, pruner: str, near: float
) -> None:
    """Learning rates over a factor of hundreds and a thousand, of which one pair is best."""
    study = searched(tmp_path, sampler=sampler, pruner=pruner, trials=60)
    tuned = choose(study, run_trials(study, FakeTraining()))
    moc, dense = (tuned["arms"][arm]["chosen"] for arm in ("moc", "backbone"))
    assert near**-1 < moc["lr_scale"] / 3 < near
    assert near**-2 < moc["lr_scale"] * moc["lr_scale.bank"] / 0.9 < near**2
    assert near**-1 < dense["lr_scale"] / 3 < near
    assert "lr_scale.bank" not in dense  # it changes nothing there, and is not drawn
    for name, arm in tuned["arms"].items():
        metrics = {str(one["point"]): one["metric"] for one in arm["trials"]}
        whole = [one for one in arm["trials"] if one["state"] == "finished"]
        assert metrics[str(arm["chosen"])] == min(one["metric"] for one in whole), name


def test_every_arm_has_the_same_budget_and_what_was_spent_is_what_was_trained(
    tmp_path: Path,
) -> None:
    study, training = searched(tmp_path, **ASHA), FakeTraining()
    outcomes = run_trials(study, training)
    assert {arm: len(found) for arm, found in outcomes.items()} == {"moc": 24, "backbone": 24}
    of_all = {str(one.trial): one.trial for found in outcomes.values() for one in found}
    trials = tuning_study(study, of_all)
    budgets = {
        sum(phase.num_steps() * phase.tokens_per_step for phase in arm.phases.values())
        for arm in trials.arms.values()
    }
    assert budgets == {(2048 + 1536) // 2}
    tuned = choose(study, outcomes)
    assert sum(arm["tokens"] for arm in tuned["arms"].values()) == training.tokens
    for arm in tuned["arms"].values():
        states = Counter(trial["state"] for trial in arm["trials"])
        assert states["pruned"] > states["finished"] > 0
        assert arm["tokens"] < 0.6 * 24 * 2 * max(budgets)
    phases = list(next(iter(trials.arms.values())).phases.values())
    for trial in tuned["arms"]["moc"]["trials"]:
        pause = find_pause(phases, trial["share"])
        assert trial["tokens"] == 2 * (pause.tokens if pause else 1792)
    text = render_tuned(tuned, Path("tuned.yaml"), named=False)
    assert f"{states['pruned']} pruned" in text and max(map(len, text.splitlines())) <= 110
    assert yaml.safe_load(yaml.safe_dump(tuned)) == tuned


def test_a_trial_goes_on_if_it_is_among_the_best_third_so_far(tmp_path: Path) -> None:
    """By the rule, worked out by hand from what every trial came to, in the order asked."""
    study, training = searched(tmp_path, **ASHA), FakeTraining()
    outcomes = run_trials(study, training)
    for found in outcomes.values():
        for rung, share in enumerate((1 / 9, 1 / 3)):
            told: list[float] = []
            for one in found:
                if one.state == "pruned" and one.share < share * 0.99:
                    continue  # not there
                told.append(_at(study, one.trial.arm, one.trial.point, share))
                keeps = told[-1] <= sorted(told)[max(0, len(told) // 3 - 1)]
                ended_here = one.state == "pruned" and one.share == pytest.approx(share)
                assert keeps != ended_here, (rung, one)
    assert training.reports == 1


def _at(study: StudyConfig, arm: str, point: dict[str, float], share: float) -> float:
    from moc.plan.axes import at

    changed = at(study.arms[arm], point)
    phases = tuning_study(study, {}).phases
    pause = find_pause(list(phases.values()), share)
    assert pause is not None
    return bowl(changed, pause.tokens / 1792)


@pytest.mark.parametrize("options", [ASHA, ASHA | {"sampler": "random", "batch": 5}])
def test_a_search_that_is_killed_anywhere_comes_to_the_same(tmp_path: Path, options: Any) -> None:
    undisturbed = FakeTraining()
    whole = run_trials(searched(tmp_path / "whole", **options), undisturbed)
    training = FakeTraining()
    study = searched(tmp_path / "killed", **options)
    for more in (1, 1, 10, 7, 12):
        training.die_after = len(training.asked) + more
        with pytest.raises(KeyboardInterrupt):
            run_trials(study, training)
    training.die_after = None
    assert run_trials(study, training) == whole
    assert training.asked == undisturbed.asked  # and nothing was trained twice
    assert run_trials(study, training) == whole and training.asked == undisturbed.asked
    assert choose(study, whole) == choose(study, run_trials(study, training))


def test_more_trials_go_on_where_fewer_ended(tmp_path: Path) -> None:
    study, training = searched(tmp_path, **ASHA | {"trials": 12}), FakeTraining()
    few = run_trials(study, training)
    before = len(training.asked)
    assert study.tuning is not None
    study.tuning.trials = 24
    more = run_trials(study, training)
    assert all(more[arm][:12] == few[arm] for arm in few) and len(training.asked) > before
    undisturbed = FakeTraining()
    assert run_trials(searched(tmp_path / "other", **ASHA), undisturbed) == more


def test_pruned_runs_say_so(tmp_path: Path) -> None:
    study = searched(tmp_path, **ASHA)
    outcomes = run_trials(study, FakeTraining())
    runs = StudyDir(tuning_study(study, {}).dir).path.glob("arms/*/*/run.json")
    infos = [read_json(path) for path in runs]
    statuses = Counter(info["status"] for info in infos)
    states = Counter(one.state for found in outcomes.values() for one in found)
    assert statuses == {state: 2 * count for state, count in states.items()}  # two seeds
    why = next(info["why"] for info in infos if info["status"] == "pruned")
    assert why.startswith("not among the best 1/3 of its arm at 11.1% of its tokens")


def test_what_diverges_is_out_and_the_sampler_is_told(tmp_path: Path) -> None:
    def cliff(arm: ArmConfig, share: float) -> float:
        rate = arm.phases["facts"].optimizer.backbone.lr
        return math.inf if rate > 2.5e-3 and share > 0.2 else bowl(arm, share)

    study = searched(tmp_path, **ASHA)
    outcomes = run_trials(study, FakeTraining(cliff))
    states = Counter(one.state for one in outcomes["backbone"])
    assert states["diverged"] and states["finished"] and states["pruned"]
    tuned = choose(study, outcomes)
    assert 1 < tuned["arms"]["backbone"]["chosen"]["lr_scale"] <= 2.5
    assert run_trials(study, FakeTraining(cliff)) == outcomes  # it was fine on the way


def test_points_that_come_again_are_trained_once_and_count_for_every_arm(tmp_path: Path) -> None:
    axes = {"lr_scale": [1, 3], "lr_scale.bank": [0.3, 1]}
    study = searched(tmp_path, **ASHA | {"axes": axes, "trials": 12, "batch": 4, "seeds": [7]})
    training = FakeTraining()
    outcomes = run_trials(study, training)
    assert {arm: len(found) for arm, found in outcomes.items()} == {"moc": 4, "backbone": 2}
    assert len(set(training.asked)) == len(training.asked)
    tuned = choose(study, outcomes)
    assert tuned["asked"] == 12
    assert tuned["arms"]["moc"]["chosen"] == {"lr_scale": 3, "lr_scale.bank": 0.3}
    assert not tuned["arms"]["moc"]["at_edge"]


def test_a_trial_that_fails_otherwise_stops_the_search(tmp_path: Path) -> None:
    with pytest.raises(StudyIncomplete, match=r"trial moc-\w+ has not come to 11.1% of its tokens"):
        run_trials(searched(tmp_path, **ASHA), lambda *_: None)


def test_whole_numbers_and_names_are_drawn_as_such(tmp_path: Path) -> None:
    axes = {
        "phases.facts.schedule.warmup_steps": {"low": 1, "high": 4},
        "phases.*.schedule.kind": ["wsd", "cosine"],
        "phases.facts.optimizer.beta2": {"low": 0.9, "high": 0.999},
        "model.memory.chapters.router.balance_coefficient": {"low": 0, "high": 1},
    }
    study = searched(tmp_path, sampler="random", axes=axes, batch=20)
    trials = first_trials(study)
    assert len(trials.arms) == 40
    of_moc = [arm for arm in trials.arms.values() if arm.model.memory]
    warmups = {arm.phases["facts"].schedule.warmup_steps for arm in of_moc}
    assert warmups == {0, 1, 2}  # half of them, with the budget
    assert {type(warmup) for warmup in warmups} == {int}
    assert {arm.phases["skills"].schedule.kind for arm in of_moc} == {"wsd", "cosine"}
    betas = {arm.phases["facts"].optimizer.beta2 for arm in of_moc}
    assert len(betas) == 20 and min(betas) >= 0.9 and max(betas) <= 0.999
    assert all(len(f"{beta:.10g}") <= 7 for beta in betas)  # five digits


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tuning.sampler": "bayes"}, r"tuning.sampler cannot be 'bayes'; choose from grid, ran"),
        ({"tuning.sampler": "grid"}, r"axes.lr_scale is a range, which a grid has no points of"),
        ({"tuning.pruner": "asha", "tuning.sampler": "grid"}, r"pruner asha goes with a sampler"),
        ({"tuning.axes.lr_scale": 3}, r"or a range such as {low: 0.1, .* not 3"),
        ({"tuning.axes.lr_scale": []}, r"axes.lr_scale has no values"),
        ({"tuning.axes.lr_scale.hgih": 3}, r"a range has no 'hgih'; did you mean 'high'"),
        ({"tuning.axes.lr_scale.low": 30}, r"numbers, the lower first, not 30, 10"),
        ({"tuning.axes.lr_scale.low": "x"}, r"numbers, the lower first, not 'x', 10"),
        ({"tuning.axes.lr_scale.low": 0}, r"a logarithmic range begins above 0, not at 0"),
        ({"tuning.axes.lr_scale.log": 2}, r"axes.lr_scale.log is true or false, not 2"),
        ({"tuning.trials": 0}, r"tuning.trials must be from 1 to"),
        ({"tuning.seeds": []}, r"tuning.seeds is empty"),
    ],
)
def test_what_cannot_be_searched_is_refused_when_it_is_loaded(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    base = "tuning={axes: {lr_scale: {low: 1, high: 10, log: true}}, sampler: tpe}"
    words = [f"{key}={value}" for key, value in options.items()]
    with pytest.raises(ConfigError, match=message) as error:
        load_study(write_tiny_study(tmp_path), [base, *words])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"phases.*.schedule.kind": {"low": 1, "high": 2}}, "kind is no number, and has no range"),
        ({"phases.facts.optimizer.beta2": {"low": 0.5, "high": 1.5}}, "beta2 must be at least 0 a"),
        ({"lr_scale.banks": {"low": 1, "high": 2}}, "no group 'banks'; did you mean 'bank'"),
        ({"phases.facts.schedule.warmup_steps": {"low": 0.5, "high": 2}}, "takes whole numbers"),
        ({"phases.facts.tokens_per_step": [512]}, "reads in a step or a phase, which a sampler"),
    ],
)
def test_axes_that_a_sampler_cannot_try(tmp_path: Path, axes: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        first_trials(searched(tmp_path, sampler="tpe", axes=axes))


def test_without_optuna_one_line_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = searched(tmp_path, sampler="tpe")
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert study.tuning is not None
    with pytest.raises(ConfigError, match=r"needs Optuna: pip install optuna, or set"):
        Search(study.tuning, "moc", study.arms["moc"])
    study.tuning = TuningConfig(axes={"lr_scale": [1, 3]})
    assert len(first_trials(study).arms) == 4  # a grid asks for no package
