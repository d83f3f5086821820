"""What ``moc tune`` chooses and writes down."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from moc.config.load import load_study
from moc.config.schema import StudyConfig
from moc.config.tuning import TuningConfig
from moc.errors import ConfigError, TrainingDiverged
from moc.plan.trials import grid_of
from moc.tuning.choice import choose, render_tuned, write_tuned
from moc.tuning.outcomes import Outcome
from tests.support.helpers_training import tiny_study, write_tiny_study

AXES = {"lr_scale.backbone": [0.5, 1.0, 2.0, 4.0], "lr_scale.bank": [1.0, 3.0, 9.0]}
BEST = {"moc": (2.0, 3.0), "backbone": (4.0, 1.0)}
PER_TRIAL = 1024 + 768  # half of each phase
Outcomes = dict[str, list[Outcome]]


@pytest.fixture
def study(tmp_path: Path) -> StudyConfig:
    study = tiny_study(tmp_path)
    study.tuning = TuningConfig(axes=AXES, seeds=[7, 8])
    return study


@pytest.fixture
def outcomes(study: StudyConfig) -> Outcomes:
    """Bits per byte of every trial: a bowl around its arm's best point, a little off by seed."""
    found: Outcomes = {"moc": [], "backbone": []}
    for trial in grid_of(study).values():
        away = [
            math.log(value / best) ** 2
            for value, best in zip(trial.point.values(), BEST[trial.arm], strict=True)
        ]
        metric = [2 + sum(away) + off for off in (-0.01, 0.01)]
        found[trial.arm].append(Outcome(trial, metric, 2 * PER_TRIAL, 1.0, "finished"))
    return found


def test_the_best_of_a_problem_with_a_known_answer_is_chosen(
    study: StudyConfig, outcomes: Outcomes
) -> None:
    tuned = choose(study, outcomes)
    moc, backbone = tuned["arms"]["moc"], tuned["arms"]["backbone"]
    assert moc["chosen"] == dict(zip(AXES, BEST["moc"], strict=True)) and not moc["at_edge"]
    assert backbone["chosen"]["lr_scale.backbone"] == 4.0
    assert backbone["at_edge"] == ["lr_scale.backbone"]
    assert [len(arm["trials"]) for arm in (moc, backbone)] == [12, 4]
    assert [arm["tokens"] for arm in (moc, backbone)] == [24 * PER_TRIAL, 8 * PER_TRIAL]
    assert moc["settings"] == {
        "phases": {
            name: {"optimizer": {"backbone": {"lr": 2e-3}, "bank": {"lr": 3e-3}}}
            for name in ("facts", "skills")
        }
    }


def test_a_study_that_names_the_file_has_what_was_chosen(
    study: StudyConfig, outcomes: Outcomes, tmp_path: Path
) -> None:
    tuned = choose(study, outcomes)
    path = write_tuned(study, tuned)
    assert path == tmp_path / "runs/tiny-tuning/tuned.yaml"
    assert yaml.safe_load(path.read_text()) == tuned
    file = write_tiny_study(tmp_path)
    found = load_study(file, [f"tuned={path}"])
    for arm, (backbone, bank) in BEST.items():
        for phase in found.arms[arm].phases.values():
            assert phase.optimizer.backbone.lr == pytest.approx(1e-3 * backbone)
            assert phase.optimizer.bank.lr == pytest.approx(1e-3 * (bank if arm == "moc" else 1))
    # a number that was not tuned may not change, and no arm may come or go untuned
    with pytest.raises(ConfigError, match=r"arms.moc is another than .* run 'moc tune' again"):
        load_study(file, [f"tuned={path}", "phases.facts.tokens=4096"])
    del tuned["arms"]["backbone"]
    write_tuned(study, tuned)
    with pytest.raises(ConfigError, match=r"has nothing for arms.backbone"):
        load_study(file, [f"tuned={path}"])
    assert load_study(file, ["tuned=missing.yaml"], untuned=True).tuned is not None
    with pytest.raises(ConfigError, match=r"no file missing.yaml; 'moc tune' makes it"):
        load_study(file, ["tuned=missing.yaml"])


def test_what_is_printed(study: StudyConfig, outcomes: Outcomes) -> None:
    tuned = choose(study, outcomes)
    text = render_tuned(tuned, Path("tuned.yaml"), named=False)
    assert "backbone: lr_scale.backbone 4.0 lies at the edge" in text
    assert "the study uses it with: tuned: tuned.yaml" in text
    assert max(map(len, text.splitlines())) <= 110


def test_a_point_that_diverges_is_never_chosen(study: StudyConfig, outcomes: Outcomes) -> None:
    """Nor one that was pruned, whatever it came to."""
    for found in outcomes.values():
        found.sort(key=lambda one: one.mean)
        found[0] = replace(found[0], metric=[found[0].metric[0], math.inf], state="diverged")
        found[1] = replace(found[1], share=1 / 3, state="pruned")
    tuned = choose(study, outcomes)
    for arm, found in outcomes.items():
        assert tuned["arms"][arm]["chosen"] == found[2].trial.point
    assert yaml.safe_load(yaml.safe_dump(tuned)) == tuned  # .inf
    assert "1 diverged, 1 pruned, 10 finished" in render_tuned(tuned, Path("x"), named=True)
    worst = [replace(one, state="diverged") for one in outcomes["moc"]]
    with pytest.raises(TrainingDiverged, match=r"every trial of arms.moc diverged"):
        choose(study, outcomes | {"moc": worst})
