"""Every memory of a study with an assay has a twin whose bank never trains."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from moc.config.load import load_study, save_study
from moc.config.schema import StudyConfig
from moc.errors import ConfigError
from moc.plan.axes import axes_of, relevant
from moc.plan.study_plan import plan_study
from moc.run.resolve import resolve_study

STUDY = """
name: twinned
model: {preset: tiny}
data: {people: {kind: facts}, skills: {kind: skills}}
phases:
  learn: {mixture: {people: 1}}
  more: {mixture: {skills: 1}}
arms:
  keys: {model: {memory: {kind: product_keys}}}
  one: {model: {memory: {rows: one}}, phases: {more: {optimizer: {bank: {lr: 0.5}}}}}
  dense: {model: {memory: null}, iso_flop: {target: keys}}
assay: {positive: keys, negative: [one]}
"""
LADDER = "ladder: {a: {phases: {learn: {tokens: 50_000}}}, b: {}}"


def loaded(folder: Path, text: str = STUDY, *overrides: str) -> StudyConfig:
    (folder / "study.yaml").write_text(text)
    return load_study(folder / "study.yaml", overrides)


def test_a_twin_is_its_arm_with_a_frozen_bank(tmp_path: Path) -> None:
    study = loaded(tmp_path)
    assert list(study.arms) == ["keys", "keys_frozen", "one", "one_frozen", "dense"]
    for name in ("keys", "one"):
        arm, twin = study.arms[name], study.arms[f"{name}_frozen"]
        assert twin.twin_of == name and twin.model == arm.model
        for phase in study.phases:
            bank = twin.phases[phase].optimizer.bank
            assert bank.freeze and not arm.phases[phase].optimizer.bank.freeze
            bank.freeze = False
        assert twin.phases == arm.phases


def test_nothing_of_a_twins_bank_trains_and_nothing_of_it_is_tuned(tmp_path: Path) -> None:
    study = loaded(tmp_path)
    plan = plan_study(study).arms
    assert plan["keys_frozen"].trainable == plan["keys"].trainable - plan["keys"].parameters.bank
    axes = {"lr_scale": [1, 2], "lr_scale.bank": [1, 10]}
    assert list(axes_of(study.arms["keys"], axes)) == ["lr_scale", "lr_scale.bank"]
    assert list(axes_of(study.arms["keys_frozen"], axes)) == ["lr_scale"]
    twin = relevant(study.arms["keys_frozen"])
    assert all(phase.optimizer.bank.freeze for phase in twin.phases.values())


def test_what_is_saved_is_the_same_study_again(tmp_path: Path) -> None:
    for text in (STUDY, STUDY + LADDER):
        study = resolve_study(loaded(tmp_path, text))
        save_study(study, tmp_path / "saved.yaml")
        assert load_study(tmp_path / "saved.yaml", stored=True) == study


def test_each_size_of_a_ladder_has_twins_of_its_own(tmp_path: Path) -> None:
    study = loaded(tmp_path, STUDY + LADDER)
    assert [name for name in study.arms if name.startswith("keys")] == [
        "keys-a",
        "keys_frozen-a",
        "keys-b",
        "keys_frozen-b",
    ]
    twin = study.arms["keys_frozen-a"]
    assert twin.twin_of == "keys-a" and twin.phases["learn"].tokens == 50_000
    assert twin.phases["learn"].optimizer.bank.freeze


def test_listed_arms_alone_get_twins(tmp_path: Path) -> None:
    text = STUDY.replace("negative: [one]", "twins: [keys]")
    assert list(loaded(tmp_path, text).arms) == ["keys", "keys_frozen", "one", "dense"]
    text = STUDY.replace("[one]}", "[one], twins: [keys]}")
    with pytest.raises(ConfigError, match="arm 'one' has no twin"):
        loaded(tmp_path, text)


def test_without_an_assay_there_are_no_twins(tmp_path: Path) -> None:
    plain = loaded(tmp_path, STUDY.partition("assay")[0])
    assert list(plain.arms) == ["keys", "one", "dense"]
    whole = loaded(tmp_path)
    assert replace(whole.arms["keys"]) == plain.arms["keys"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("positive: keys", "positive: kays", "assay.positive: no arm 'kays'; did you mean 'keys'"),
        ("negative: [one]", "negative: [two]", "assay.negative: no arm 'two'"),
        ("positive: keys", "positive: dense", "assay.positive: arm 'dense' has no twin"),
        ("positive: keys, ", "", "assay.positive: no arm ''"),
        ("  one:", "  keys_frozen: {}\n  one:", "arms.keys_frozen: with an assay, the twin of"),
        ("negative: [one]", "twins: [many]", "assay.twins: no arm 'many'"),
        ("positive: keys", "positve: keys", "unknown key 'assay.positve'"),
    ],
)
def test_a_mistaken_assay_ends_in_one_line(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    for text in (STUDY, STUDY + LADDER):
        with pytest.raises(ConfigError) as caught:
            loaded(tmp_path, text.replace(old, new))
        assert message in str(caught.value) and "\n" not in str(caught.value)
