"""What replay, joint training and equal parameters make of an arm, and that it is made once."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from moc.config.load import load_study, save_study
from moc.config.schema import StudyConfig
from moc.data.tokenizer import used_sources
from moc.data.windows import needed
from moc.errors import ConfigError
from moc.plan.arms import resolve_arms, solved_arms
from moc.plan.flops import parameter_counts
from moc.plan.study_plan import plan_study, violations
from moc.plan.text import render_plan

# 1,000 + 3,000 + 2,000 tokens are trained: budgets are cut to whole steps of 1,000
STUDY = """
name: s
model: {preset: tiny}
data: {a: {kind: facts}, b: {kind: skills}, c: {kind: facts, seed: 1}}
phases:
  one: {mixture: {a: 2}, tokens: 1_999, tokens_per_step: 1000, context_length: 100}
  two: {mixture: {b: 3, a: 1}, tokens: 3_000, tokens_per_step: 1000, context_length: 100}
  three: {mixture: {c: 5}, tokens: 2_000, tokens_per_step: 1000, context_length: 100}
arms:
  moc: {}
  replay: {phases: {two: {replay: 0.1}, three: {replay: 0.2}}}
  joint: {joint: true}
  dense: {model: {memory: null}, iso_param: {target: moc}}
  flops: {model: {memory: null}, iso_flop: {target: moc}}
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "study.yaml"
    file.write_text(STUDY)
    return file


def mixtures(study: StudyConfig, arm: str) -> list[dict[str, float]]:
    return [phase.mixture for phase in resolve_arms(study)[arm].phases.values()]


# data


def test_replay_by_hand(path: Path) -> None:
    """Phase two: 90% of 3/4 b + 1/4 a, and 10% of phase one's a. Phase three: 80% c, and 20% of
    what 1,000 tokens of a and 3,000 of (3/4 b, 1/4 a) are together: 1.75/4 a and 2.25/4 b."""
    one, two, three = mixtures(load_study(path), "replay")
    assert one == {"a": 2}
    assert two == pytest.approx({"b": 0.9 * 0.75, "a": 0.9 * 0.25 + 0.1})
    assert three == pytest.approx({"c": 0.8, "a": 0.2 * 1.75 / 4, "b": 0.2 * 2.25 / 4})
    assert all(
        phase.replay == 0 for phase in resolve_arms(load_study(path))["replay"].phases.values()
    )


def test_joint_by_hand(path: Path) -> None:
    """1,000 a, 3,000 (3/4 b, 1/4 a), 2,000 c: of 6,000 tokens, 1,750 a, 2,250 b, 2,000 c."""
    expected = {"a": 1750 / 6000, "b": 2250 / 6000, "c": 2000 / 6000}
    study = load_study(path)
    for mixture in mixtures(study, "joint"):
        assert mixture == pytest.approx(expected)
    assert not resolve_arms(study)["joint"].joint
    # budget and everything but the data stay the phase's own
    for name, phase in resolve_arms(study)["joint"].phases.items():
        assert replace(phase, mixture={}) == replace(study.phases[name], mixture={})


def test_a_phase_that_trains_nothing_is_not_replayed(path: Path) -> None:
    study = load_study(path, ["phases.two.no_op=true", "arms.replay.phases.two.replay=0"])
    assert mixtures(study, "replay")[2] == pytest.approx({"c": 0.8, "a": 0.2})


def test_an_arm_that_asks_for_neither_is_left_alone(path: Path) -> None:
    study = load_study(path)
    assert resolve_arms(study)["moc"] == study.arms["moc"]


@pytest.mark.parametrize("times", [1, 2])
def test_a_saved_resolved_study_is_loaded_as_itself(path: Path, tmp_path: Path, times: int) -> None:
    """A study's folder holds the resolved study, and resuming or scoring resolves it again."""
    resolved = load_study(path)
    for _ in range(times):
        resolved = replace(resolved, arms=solved_arms(resolved))
    save_study(resolved, tmp_path / "saved.yaml")
    again = load_study(tmp_path / "saved.yaml")
    assert again == resolved
    assert solved_arms(again) == resolved.arms
    for name, arm in again.arms.items():  # the order of a mixture decides the order of samples
        for key, phase in arm.phases.items():
            assert list(phase.mixture) == list(resolved.arms[name].phases[key].mixture)


def test_what_the_data_is_read_for_is_known_before_and_after(path: Path) -> None:
    """The tokenizer is trained on the same sources, and the caches hold what replay reads."""
    study = load_study(path)
    study.arms = {name: study.arms[name] for name in ("replay",)}
    solved = replace(study, arms=solved_arms(study))
    assert used_sources(study) == used_sources(solved) == ["a", "b", "c"]
    three = solved.arms["replay"].phases["three"]
    # source a in one block of 1,000 windows a phase: all of them, 325, 87.5 of them (rounded up
    # or down); of 100 tokens each
    num_windows = (needed(solved, three, "a").tokens - 3) / 100
    assert num_windows in (1000 + 325 + 87, 1000 + 325 + 88)


# shape


def test_equal_parameters(path: Path) -> None:
    study = load_study(path)
    plan = plan_study(study)
    dense, moc = (resolve_arms(study)[name].model for name in ("dense", "moc"))
    counts = [parameter_counts(model).total for model in (dense, moc)]
    assert dense.memory is None and abs(counts[0] / counts[1] - 1) <= 0.005
    planned = plan.arms["dense"].iso_param
    assert planned is not None and planned.relative_error == counts[0] / counts[1] - 1
    assert plan.arms["dense"].iso_flop is None and plan.arms["flops"].iso_param is None
    assert plan.arms["dense"].parameters.total != plan.arms["flops"].parameters.total
    assert violations(plan) == []


def test_the_plan_shows_equal_parameters_as_it_shows_equal_flops(path: Path) -> None:
    plan = plan_study(load_study(path))
    chosen = plan.arms["dense"].model
    text = render_plan(plan)
    error = f"{plan.arms['dense'].iso_param.relative_error:+.2%}"  # type: ignore[union-attr]
    assert f"dense against moc: {error} parameters, tolerance 0.50%: OK" in text
    assert f"the solver chose {chosen.num_layers} layers (from 4) and MLP {chosen.mlp_dim}" in text
    arms = json.loads(plan.to_json())["arms"]
    assert arms["dense"]["iso_param"]["target"] == arms["flops"]["iso_flop"]["target"] == "moc"
    nothing = {"target": None, "relative_error": None}
    assert arms["dense"]["iso_flop"] == arms["flops"]["iso_param"] == nothing


def test_an_arm_off_its_targets_parameters_is_a_violation(path: Path) -> None:
    plan = plan_study(load_study(path, ["arms.dense.iso_param.solve=false"]))
    (line,) = violations(plan)
    assert line.startswith("dense: parameters are -") and "arms.dense.iso_param.solve=true" in line
    assert "parameters, tolerance 0.50%: OFF" in render_plan(plan)


def test_equal_parameters_of_a_solved_arm(path: Path) -> None:
    """The target's own shape is solved first, whatever the order of the file."""
    text = STUDY + "  chain: {model: {num_heads: 2, memory: null}, iso_param: {target: flops}}\n"
    path.write_text(text)
    plan = plan_study(load_study(path, ["arms.dense.iso_param.target=flops"]))
    totals = [plan.arms[name].parameters.total for name in ("dense", "chain", "flops")]
    assert totals == pytest.approx([totals[2]] * 3, rel=0.005)


# what is refused


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["phases.one.replay=0.1"], "phases.one.replay 0.1: no phase before it trains"),
        (["phases.two.replay=1"], "phases.two.replay must be at least 0 and below 1, not 1"),
        (["phases.two.replay=-0.1"], "phases.two.replay must be at least 0 and below 1, not -0.1"),
        (["phases.one.no_op=true"], "phases.two.replay 0.1: no phase before it trains"),
        (
            ["arms.replay.phases.two.carry.data_position=true"],
            "arms.replay.phases.two.carry.data_position: with replay the mixtures of phases",
        ),
        (["arms.replay.joint=true"], "set arms.replay.phases.two.replay to 0"),
        (["arms.dense.iso_flop.target=moc"], "arms.dense has both iso_flop and iso_param"),
        (
            ["arms.dense.iso_param.target=mocc"],
            "arms.dense.iso_param.target 'mocc' is no other arm",
        ),
        (["arms.dense.iso_param.target=dense"], "iso_param.target 'dense' is no other arm"),
    ],
)
def test_what_cannot_be_meant(path: Path, overrides: list[str], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_study(path, overrides)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_unsolvable_and_circular_targets_name_the_setting(path: Path) -> None:
    tight = load_study(path, ["arms.dense.iso_param.tolerance=1e-9"])
    with pytest.raises(ConfigError) as caught:
        plan_study(tight)
    assert "parameters to within 1e-09" in str(caught.value)
    assert "iso_param.solve: false and iso_param.tolerance" in str(caught.value)
    circle = ["arms.dense.iso_param.target=flops", "arms.flops.iso_flop.target=dense"]
    with pytest.raises(ConfigError, match=r"arms.dense.iso_param.target goes round in a circle"):
        plan_study(load_study(path, circle))
