"""What ``moc tune`` chooses and writes down."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import yaml

import moc.verbs.tune
from moc.config.load import load_study
from moc.config.schema import StudyConfig
from moc.config.tuning import TuningConfig
from moc.errors import ConfigError, TrainingDiverged
from moc.plan.trials import trials_of
from moc.verbs.tune import choose, render_tuned, write_tuned
from tests.support.helpers_training import tiny_study, write_tiny_study

AXES = {"lr_scale.backbone": [0.5, 1.0, 2.0, 4.0], "lr_scale.bank": [1.0, 3.0, 9.0]}
BEST = {"moc": (2.0, 3.0), "backbone": (4.0, 1.0)}


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StudyConfig:
    """Bits per byte of every trial: a bowl around its arm's best point, a little off by seed."""
    study = tiny_study(tmp_path)
    study.tuning = TuningConfig(axes=AXES, seeds=[7, 8])
    trials = trials_of(study)

    def bowl(_: Any, __: StudyConfig, name: str) -> list[float]:
        trial = trials[name]
        away = [
            math.log(value / best) ** 2
            for value, best in zip(trial.point.values(), BEST[trial.arm], strict=True)
        ]
        return [2 + sum(away) + off for off in (-0.01, 0.01)]

    monkeypatch.setattr(moc.verbs.tune, "load_results", lambda _: None)
    monkeypatch.setattr(moc.verbs.tune, "_metrics", bowl)
    return study


def test_the_best_of_a_problem_with_a_known_answer_is_chosen(study: StudyConfig) -> None:
    tuned = choose(study)
    moc, backbone = tuned["arms"]["moc"], tuned["arms"]["backbone"]
    assert moc["chosen"] == dict(zip(AXES, BEST["moc"], strict=True)) and not moc["at_edge"]
    assert backbone["chosen"]["lr_scale.backbone"] == 4.0
    assert backbone["at_edge"] == ["lr_scale.backbone"]
    assert [len(arm["trials"]) for arm in (moc, backbone)] == [12, 4]
    per_trial = 1024 + 768  # half of each phase
    assert [arm["tokens"] for arm in (moc, backbone)] == [2 * 12 * per_trial, 2 * 4 * per_trial]
    assert moc["settings"] == {
        "phases": {
            name: {"optimizer": {"backbone": {"lr": 2e-3}, "bank": {"lr": 3e-3}}}
            for name in ("facts", "skills")
        }
    }


def test_a_study_that_names_the_file_has_what_was_chosen(
    study: StudyConfig, tmp_path: Path
) -> None:
    tuned = choose(study)
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


def test_what_is_printed(study: StudyConfig) -> None:
    tuned = choose(study)
    text = render_tuned(tuned, Path("tuned.yaml"), named=False)
    assert "backbone: lr_scale.backbone 4.0 lies at the edge" in text
    assert "the study uses it with: tuned: tuned.yaml" in text
    assert max(map(len, text.splitlines())) <= 110


def test_a_point_that_diverges_is_never_chosen(
    study: StudyConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    bowl = moc.verbs.tune._metrics

    def diverging(results: Any, trials: StudyConfig, name: str) -> list[float]:
        found = bowl(results, trials, name)
        return [found[0], math.inf] if min(found) < 2 else found  # the best point of every arm

    monkeypatch.setattr(moc.verbs.tune, "_metrics", diverging)
    tuned = choose(study)
    assert tuned["arms"]["moc"]["chosen"] != dict(zip(AXES, BEST["moc"], strict=True))
    assert yaml.safe_load(yaml.safe_dump(tuned)) == tuned  # .inf
    monkeypatch.setattr(moc.verbs.tune, "_metrics", lambda *_: [math.inf, math.inf])
    with pytest.raises(TrainingDiverged, match=r"every trial of arms.moc diverged"):
        choose(study)
