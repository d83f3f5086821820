"""A ladder multiplies arms by sizes, and what is saved of it is the same study again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from moc.config.load import load_study, save_study
from moc.config.schema import StudyConfig
from moc.errors import ConfigError
from moc.model import preset
from moc.plan.study_plan import plan_study, violations
from moc.run.resolve import resolve_study

STUDY = """
name: climb
model: {preset: tiny, mlp_dim: 96}
data: {people: {kind: facts}}
phases: {pretrain: {mixture: {people: 1}, tokens: 100_000, context_length: 64}}
arms:
  moc: {phases: {pretrain: {optimizer: {bank: {lr: 0.1}}}}}
  dense: {model: {memory: null, num_heads: 2}, iso_flop: {}}
ladder:
  s: {model: {num_layers: 2, dim: 64, num_heads: 4}, phases: {pretrain: {tokens: 50_000}}}
  m: {}
"""


def loaded(folder: Path, text: str = STUDY, *overrides: str) -> StudyConfig:
    (folder / "study.yaml").write_text(text)
    return load_study(folder / "study.yaml", overrides)


def test_each_arm_is_there_at_each_size_the_smallest_first(tmp_path: Path) -> None:
    study = loaded(tmp_path)
    assert list(study.arms) == ["moc-s", "dense-s", "moc-m", "dense-m"]
    assert [arm.size for arm in study.arms.values()] == ["s", "s", "m", "m"]
    assert study.ladder == {} and study.model.num_layers == preset("tiny").num_layers
    plain = loaded(tmp_path, STUDY.partition("ladder")[0])
    assert study.arms["moc-m"] == replace(plain.arms["moc"], size="m")


def test_a_size_lies_over_the_study_and_below_the_arm(tmp_path: Path) -> None:
    study = loaded(tmp_path)
    small, dense = study.arms["moc-s"], study.arms["dense-s"]
    assert (small.model.num_layers, small.model.dim, small.model.mlp_dim) == (2, 64, 96)
    assert (small.model.num_heads, dense.model.num_heads) == (4, 2)
    phase = small.phases["pretrain"]
    assert (phase.tokens, phase.context_length, phase.optimizer.bank.lr) == (50_000, 64, 0.1)
    assert study.phases["pretrain"].tokens == 100_000 and dense.model.memory is None


def test_an_arm_is_matched_to_the_other_one_at_its_own_size(tmp_path: Path) -> None:
    study = loaded(tmp_path)
    targets = [study.arms[f"dense-{size}"].iso_flop for size in "sm"]
    assert [match and match.target for match in targets] == ["moc-s", "moc-m"]
    plan = plan_study(study)
    assert not violations(plan)
    for size in "sm":
        moc, dense = plan.arms[f"moc-{size}"], plan.arms[f"dense-{size}"]
        assert dense.paper_train_flops == pytest.approx(moc.paper_train_flops, rel=0.005)
    assert plan.arms["moc-m"].paper_train_flops > 2 * plan.arms["moc-s"].paper_train_flops


def test_presets_of_sizes_and_of_arms(tmp_path: Path) -> None:
    text = STUDY.replace("m: {}", "m: {model: {preset: small, dim: 192}}")
    text = text.replace("memory: null,", "memory: null, preset: bench,")
    study = loaded(tmp_path, text)
    assert study.arms["moc-m"].model == replace(preset("small"), dim=192, mlp_dim=96)
    expected = replace(preset("bench"), dim=192, mlp_dim=96, num_heads=2, memory=None)
    assert study.arms["dense-m"].model == expected


def test_the_command_line_reaches_arms_and_sizes_before_they_are_multiplied(tmp_path: Path) -> None:
    study = loaded(tmp_path, STUDY, "ladder.s.model.dim=32", "arms.moc.model.num_kv_heads=2")
    assert (study.arms["moc-s"].model.dim, study.arms["dense-s"].model.dim) == (32, 32)
    assert {study.arms[f"moc-{size}"].model.num_kv_heads for size in "sm"} == {2}
    for override, word in (
        ("ladder.x.model.dim=32", "no size 'x'"),
        ("arms.moc-s.joint=true", "no arm"),
    ):
        with pytest.raises(ConfigError, match=word):
            loaded(tmp_path, STUDY, override)


@pytest.mark.parametrize("solved", [False, True], ids=["as written", "as trained"])
def test_what_is_saved_loads_as_the_same_study(tmp_path: Path, solved: bool) -> None:
    study = loaded(tmp_path)
    if solved:
        study = resolve_study(study)
    save_study(study, tmp_path / "saved.yaml")
    assert load_study(tmp_path / "saved.yaml") == study


@pytest.mark.parametrize(
    ("before", "after", "word"),
    [
        ("m: {}", "S: {}", "differ only by case"),
        ("m: {}", "'m/2': {}", "cannot name"),
        ("m: {}", "m: {modle: {}}", "unknown key 'ladder.m.modle'"),
        ("m: {}", "m: {phases: {pretrian: {tokens: 5}}}", "pretrian"),
        ("iso_flop: {}", "iso_flop: {target: mco}", "'mco' is no other arm"),
        ("ladder:", "  moc-a: {}\nladder:\n  a-s: {}", "both called 'moc-a-s'"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path: Path, before: str, after: str, word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        loaded(tmp_path, STUDY.replace(before, after))


def test_a_size_given_by_hand_is_the_end_of_the_arms_name(tmp_path: Path) -> None:
    by_hand = STUDY.partition("ladder")[0]
    named = by_hand.replace("dense:", "dense-l:").replace("iso_flop: {}", "size: l")
    assert loaded(tmp_path, named).arms["dense-l"].size == "l"
    with pytest.raises(ConfigError, match="<arm>-l"):
        loaded(tmp_path, named.replace("dense-l", "dense"))


def test_a_study_of_very_many_arms_is_saved_and_read_again(tmp_path: Path) -> None:
    """OmegaConf reads 10,000 entries of YAML, unless it is asked for more."""
    arms = "".join(f"  a{i}: {{}}\n" for i in range(60))
    text = STUDY.partition("arms:")[0] + "arms:\n" + arms
    study = loaded(tmp_path, text)
    save_study(study, tmp_path / "saved.yaml")
    assert (tmp_path / "saved.yaml").read_text().count("\n") > 5_000
    assert load_study(tmp_path / "saved.yaml", stored=True) == study
