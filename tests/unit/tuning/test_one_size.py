"""One size of a ladder is tuned, and every size of an arm takes its choice."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from moc.config.identity import config_hash
from moc.config.load import load_study, save_study
from moc.config.schema import ArmConfig, PhaseConfig, StudyConfig
from moc.config.tuned import tuned_for
from moc.errors import ConfigError
from moc.plan.trials import at_one_size, grid_of, tuning_study
from moc.tuning.choice import choose, write_tuned
from moc.tuning.outcomes import Outcome

STUDY = """
name: sized
runs_dir: {folder}/runs
model: {{preset: tiny}}
data: {{a: {{kind: records, value_bits: [1]}}, b: {{kind: records, value_bits: [2]}}}}
phases: {{learn: {{packing: documents, context_length: 13, tokens_per_step: 1300}}}}
arms:
  keys: {{model: {{memory: {{kind: product_keys}}}}}}
  dense: {{model: {{memory: null}}, iso_flop: {{target: keys}}}}
ladder:
  low: {{phases: {{learn: {{mixture: {{a: 1}}}}}}}}
  high: {{phases: {{learn: {{mixture: {{b: 1}}}}}}}}
assay: {{positive: keys}}
tuning: {{size: high, axes: {{lr_scale: [1, 3], lr_scale.bank: [1, 2]}}}}
"""


def loaded(folder: Path, *overrides: str, **options: bool) -> StudyConfig:
    (folder / "study.yaml").write_text(STUDY.format(folder=folder))
    return load_study(folder / "study.yaml", overrides, **options)


def tuned_by(study: StudyConfig) -> dict:
    """As if the highest rates were the best, for every arm."""
    study = at_one_size(study)
    grid = grid_of(study)
    outcomes = {
        arm: [
            Outcome(trial, [1 / trial.point["lr_scale"] / trial.point["lr_scale.bank"]], 7, 1.0,
                    "finished")
            for trial in grid.values()
            if trial.arm == arm
        ]
        for arm in study.arms
    }  # fmt: skip
    return choose(study, outcomes)


def test_trials_are_of_that_size_and_are_a_study_like_any(tmp_path: Path) -> None:
    study = at_one_size(loaded(tmp_path))
    assert list(study.arms) == ["keys-high", "keys_frozen-high", "dense-high"]
    grid = grid_of(study)
    # a bank that does not train has no rate to try
    assert [trial.arm for trial in grid.values()].count("keys_frozen-high") == 2
    trials = tuning_study(study, grid)
    save_study(trials, tmp_path / "trials.yaml")
    again = load_study(tmp_path / "trials.yaml", stored=True)
    assert again == trials and list(again.arms) == list(grid)


def test_every_size_takes_what_was_chosen(tmp_path: Path) -> None:
    study = loaded(tmp_path)
    path = write_tuned(study, tuned_by(study))
    chosen = loaded(tmp_path, f"tuned={path}")
    for name, arm in chosen.arms.items():
        before = study.arms[name].phases["learn"].optimizer
        after = arm.phases["learn"].optimizer
        assert after.backbone.lr == pytest.approx(3 * before.backbone.lr)
        factor = 6 if name.startswith("keys-") else 3
        assert after.bank.lr == pytest.approx(factor * before.bank.lr)
        assert after.bank.freeze == before.bank.freeze == name.startswith("keys_frozen")
        assert arm.phases["learn"].mixture == study.arms[name].phases["learn"].mixture


def test_a_choice_for_another_arm_at_that_size_is_refused(tmp_path: Path) -> None:
    study = loaded(tmp_path)
    path = write_tuned(study, tuned_by(study))
    with pytest.raises(ConfigError, match="another than"):
        loaded(tmp_path, f"tuned={path}", "arms.keys.model.num_layers=3")
    tuned = yaml.safe_load(path.read_text())
    del tuned["arms"]["dense-high"]
    path.write_text(yaml.safe_dump(tuned))
    with pytest.raises(ConfigError, match="has nothing for arms"):
        loaded(tmp_path, f"tuned={path}")


def test_a_choice_outlives_a_setting_that_is_new(tmp_path: Path) -> None:
    """What is as usual is no part of what an arm was tuned for."""
    plain = {"learn": PhaseConfig()}
    assert tuned_for(ArmConfig(phases=plain)) == config_hash({}, {"learn": {}})
    other = {"learn": PhaseConfig(packing="documents")}
    assert tuned_for(ArmConfig(phases=other)) == config_hash(
        {}, {"learn": {"packing": "documents"}}
    )


def test_a_size_that_is_not_there_ends_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no size"):
        loaded(tmp_path, "tuning.size=hihg")
