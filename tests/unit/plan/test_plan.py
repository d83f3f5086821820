import json
import re
import socket
from pathlib import Path

import pytest

from moc.config.load import load_study
from moc.config.schema import PhaseConfig
from moc.errors import ConfigError
from moc.plan.flops import paper_forward_flops
from moc.plan.study_plan import micro_batch, plan_study, resolve_arms, violations
from moc.plan.text import render_plan
from moc.text import human

EXPERIMENTS = Path(__file__).parents[3] / "experiments"
STUDY = """
name: t
model: {preset: tiny}
data: {people: {kind: facts}}
phases:
  pretrain: {mixture: {people: 1}, tokens: 819_200, tokens_per_step: 8192, context_length: 128}
  tune: {mixture: {people: 1}, tokens: 250_000, tokens_per_step: 8192, context_length: 256}
arms:
  moc: {}
  iso_flop: {model: {memory: null}, iso_flop: {target: moc}}
  backbone: {model: {memory: null}}
"""


@pytest.fixture
def study_file(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(STUDY)
    return path


@pytest.mark.parametrize(
    "path", sorted(EXPERIMENTS.rglob("*.yaml")), ids=lambda path: str(path.relative_to(EXPERIMENTS))
)
def test_every_shipped_study_plans_offline_within_its_tolerances(path, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("planning opened a connection")

    monkeypatch.setattr(socket, "socket", refuse)
    plan = plan_study(load_study(path))
    assert violations(plan) == []
    assert max(map(len, render_plan(plan).splitlines())) <= 100


def test_paper_plan_prints_the_published_figures():
    plan = json.loads(plan_study(load_study(EXPERIMENTS / "paper/pretrain.yaml")).to_json())
    assert plan["study"] == "paper-pretrain" and list(plan["arms"]) == [
        "moc",
        "iso_flop",
        "backbone",
    ]
    moc, dense, backbone = plan["arms"].values()
    assert moc["parameters"] == {
        "total": 371_292_932,
        "trainable": 371_292_932,
        "backbone": 147_874_560,
        "memory_layers": 22_042_628,
        "bank": 201_375_744,
    }
    assert [arm["parameters"]["total"] for arm in (dense, backbone)] == [202_937_088, 147_874_560]
    assert [arm["flops"]["paper_forward_per_sequence"] for arm in (moc, dense, backbone)] == [
        459_171_802_488,
        495_763_542_016,
        356_363_685_888,
    ]
    assert dense["iso_flop"]["target"] == "moc"
    assert dense["iso_flop"]["relative_error"] == pytest.approx(495763542016 / 459171802488 - 1)
    assert moc["steps"] == {"pretrain": 9600}


def test_paper_batches_are_the_published_ones():
    pretrain = load_study(EXPERIMENTS / "paper/pretrain.yaml").phases["pretrain"]
    assert micro_batch(pretrain, 8) == (32, 4)
    assert round(pretrain.num_steps() * (1 - pretrain.schedule.decay_fraction)) == 8160
    phases = plan_study(load_study(EXPERIMENTS / "paper/instruction.yaml")).arms["moc"].phases
    assert (phases["pretrain"].micro_batch, phases["pretrain"].accumulation) == (32, 8)
    tune = phases["instruction"]
    assert (tune.num_steps, tune.micro_batch, tune.accumulation) == (3248, 32, 1)


def test_json_has_exactly_the_documented_keys(study_file):
    plan = json.loads(plan_study(load_study(study_file)).to_json())
    assert set(plan) == {"study", "arms"}
    for name, arm in plan["arms"].items():
        memory = arm.pop("memory")
        assert (memory and memory["kind"]) == ("chapters" if name == "moc" else None)
        assert (type(arm.pop("scope")), type(arm.pop("causal"))) == (str, bool)
        assert [type(arm.pop(f"{what}_bytes")) for what in ("state", "activation")] == [int, int]
        assert {key: set(value) for key, value in arm.items()} == {
            "parameters": {"total", "trainable", "backbone", "memory_layers", "bank"},
            "flops": {"paper_forward_per_sequence", "hardware_train_per_token", "paper_train"},
            "iso_flop": {"target", "relative_error"},
            "iso_param": {"target", "relative_error"},
            "steps": {"pretrain", "tune"},
        }
    assert plan["arms"]["moc"]["iso_flop"] == {"target": None, "relative_error": None}


def test_iso_flop_weighs_phases_by_their_tokens(study_file):
    study = load_study(study_file)
    arms = resolve_arms(study)
    assert list(arms) == ["moc", "iso_flop", "backbone"]
    # 100 steps at 128 and 30 at 256, of the same number of tokens each
    moc, dense = (
        100 * paper_forward_flops(arms[name].model, 128) / 128
        + 30 * paper_forward_flops(arms[name].model, 256) / 256
        for name in ("moc", "iso_flop")
    )
    planned = plan_study(study).arms["iso_flop"].iso_flop
    assert planned is not None
    assert planned.relative_error == pytest.approx(dense / moc - 1)
    assert abs(planned.relative_error) <= 0.005
    assert arms["backbone"] == study.arms["backbone"]


def test_hardware_accounting_solves_too(study_file):
    study = load_study(study_file, ["arms.iso_flop.iso_flop.accounting=hardware"])
    arms = plan_study(study).arms
    moc, dense = (arms[name].hardware_train_flops_per_token for name in ("moc", "iso_flop"))
    assert dense == pytest.approx(moc, rel=0.005)


def test_arm_beyond_its_tolerance_is_a_violation(study_file):
    study = load_study(study_file, ["arms.iso_flop.iso_flop.solve=false"])
    plan = plan_study(study)
    (line,) = violations(plan)
    assert line.startswith("iso_flop: ") and "solve=true" in line
    assert "OFF" in render_plan(plan)
    # and a narrow terminal, or long names, wrap that verdict
    verdict = [line for line in render_plan(plan, 60).splitlines() if "against moc" in line]
    assert len(verdict) == 1 and len(verdict[0]) <= 60


def test_unsolvable_or_circular_targets_name_the_arm(study_file):
    tight = ["arms.iso_flop.iso_flop.tolerance=1e-9"]
    with pytest.raises(ConfigError, match=r"arms\.iso_flop: no num_layers and mlp_dim"):
        plan_study(load_study(study_file, tight))
    circle = ["arms.backbone.iso_flop.target=iso_flop", "arms.iso_flop.iso_flop.target=backbone"]
    with pytest.raises(ConfigError, match="circle: iso_flop -> backbone -> iso_flop"):
        plan_study(load_study(study_file, circle))


def test_frozen_groups_train_nothing_and_need_no_optimizer_state(study_file):
    plan = plan_study(load_study(study_file, ["phases.pretrain.optimizer.bank.freeze=true"]))
    moc = plan.arms["moc"]
    assert moc.trainable == moc.parameters.total - moc.parameters.bank
    # the second phase trains everything: 12 bytes a parameter in its checkpoint, 16 in memory
    assert moc.checkpoint_bytes // moc.parameters.total == 12
    assert moc.state_bytes == 16 * moc.parameters.total


def test_fsdp_shares_the_state_over_devices(study_file):
    alone = plan_study(load_study(study_file)).arms["moc"]
    options = ["trainer.strategy=fsdp", "trainer.devices=2", "trainer.num_nodes=2"]
    shared = plan_study(load_study(study_file, options)).arms["moc"]
    assert shared.state_bytes == alone.state_bytes // 4


def test_table_says_what_the_solver_chose(study_file):
    plan = plan_study(load_study(study_file))
    text = render_plan(plan)
    assert f"the solver chose {plan.arms['iso_flop'].model.num_layers} layers (from 4)" in text
    assert f"{plan.arms['moc'].parameters.total:,}" in text


@pytest.mark.parametrize(
    ("overrides", "label", "scope", "causal"),
    [
        (["router.scope=sequence"], "sequence (non-causal)", "sequence", False),
        ([], "segment of 32", "segment", True),
        (
            ["router.segment_tokens=8", "router.window_tokens=64"],
            "segment of 8, window 64",
            "segment",
            True,
        ),
        (["router.scope=token"], "token", "token", True),
        (["num_routed=null", "router.scope=sequence"], "every chapter", "none", True),
        (["router.window_tokens=64"], "segment of 32, window 64", "segment", True),
    ],
)
def test_plan_says_whether_an_arm_is_causal(study_file, overrides, label, scope, causal):
    settings = [f"arms.moc.model.memory.chapters.{override}" for override in overrides]
    plan = plan_study(load_study(study_file, settings))
    lines = render_plan(plan).splitlines()
    assert max(map(len, lines)) <= 100
    moc, *dense = (re.split(r"  +", line.strip()) for line in lines[3:6])
    assert moc[0] == "moc" and moc[3:] == ["chapters", "65 x 16 x 128", label]
    assert [(row[0], *row[3:]) for row in dense] == [("iso_flop", "none"), ("backbone", "none")]
    arms = json.loads(plan.to_json())["arms"]
    assert (arms["moc"]["scope"], arms["moc"]["causal"]) == (scope, causal)
    assert (arms["backbone"]["scope"], arms["backbone"]["causal"]) == ("none", True)


def test_a_baseline_is_matched_to_its_targets_routing_scope(study_file):
    """Routing every token costs FLOPs, which an iso-FLOP baseline of that arm must get too."""
    token = load_study(study_file, ["arms.moc.model.memory.chapters.router.scope=token"])
    by_segment = plan_study(load_study(study_file)).arms["iso_flop"]
    by_token = plan_study(token).arms["iso_flop"]
    assert by_token.paper_train_flops > by_segment.paper_train_flops * 1.01
    assert by_token.iso_flop is not None and by_token.iso_flop.within_tolerance


@pytest.mark.parametrize(
    ("tokens_per_step", "context_length", "size", "devices", "expected"),
    [
        (8192, 128, None, 1, (64, 1)),
        (65_536, 1024, None, 2, (8, 4)),
        (98_304, 16_384, None, 2, (1, 3)),  # longer than 8,192 tokens: one sequence at a time
        (7 * 4096, 4096, None, 1, (1, 7)),  # 2 would be 8,192 tokens but does not divide 7
        (8192, 128, 16, 2, (16, 2)),
    ],
)
def test_micro_batch_and_accumulation_make_one_step(
    tokens_per_step, context_length, size, devices, expected
):
    phase = PhaseConfig(
        tokens_per_step=tokens_per_step, context_length=context_length, micro_batch=size
    )
    assert micro_batch(phase, devices) == expected
    assert expected[0] * expected[1] * devices * context_length == tokens_per_step


def test_uneven_batches_are_refused_with_the_remedy(study_file):
    phase = PhaseConfig(tokens_per_step=8192, context_length=128)
    with pytest.raises(ConfigError, match="use a multiple of 384"):
        micro_batch(phase, 3)
    with pytest.raises(ConfigError, match=r"micro_batch 24 .* use 16, or null"):
        micro_batch(PhaseConfig(tokens_per_step=8192, context_length=128, micro_batch=24), 1)
    with pytest.raises(ConfigError, match=r"phases\.pretrain: tokens_per_step"):
        plan_study(load_study(study_file, ["trainer.devices=3"]))


def test_numbers_are_rounded_not_shifted():
    assert [human(n, "B") for n in (0, 999, 999_600, 1_500_000, 99_960_000)] == [
        "0.00 B",
        "999 B",
        "1.00 MB",
        "1.50 MB",
        "100 MB",
    ]
