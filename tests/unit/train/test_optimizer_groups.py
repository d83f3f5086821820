"""Which parameter gets which learning rate and decay, and what freezing freezes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from moc.config.load import load_study
from moc.config.schema import GroupConfig, OptimizerConfig
from moc.errors import ConfigError
from moc.model.config import ModelConfig
from moc.model.transformer import Transformer, build_model, parameter_group
from moc.train.optim import build_optimizer, freeze_groups, set_learning_rates
from tests.support.helpers_training import tiny_study, train_phase
from tests.support.small_models import chapters

MODEL = ModelConfig(
    vocab_size=64,
    num_layers=2,
    dim=16,
    num_heads=2,
    num_kv_heads=1,
    mlp_dim=32,
    memory=chapters(
        num_chapters=5, num_routed=2, chapter_tokens=3, layers="1", variant="B", layers_per_bank=1
    ),
)
BACKBONE_BLOCK = [
    "attention_norm.weight",
    "attention.qkv.weight",
    "attention.out.weight",
    "mlp_norm.weight",
    "mlp.gate_up.weight",
    "mlp.down.weight",
]
MEMORY_BLOCK = [
    "memory_norm.weight",
    "memory.read.q.weight",
    "memory.read.kv.weight",
    "memory.read.out.weight",
    "memory.address.router.linear.weight",
    "memory.address.router.linear.bias",
    "memory_mlp_norm.weight",
    "memory_mlp.gate_up.weight",
    "memory_mlp.down.weight",
]
EXPECTED = {
    "backbone": [
        "embedding.weight",
        "norm.weight",
        *(f"blocks.{layer}.{name}" for layer in (0, 1) for name in BACKBONE_BLOCK),
    ],
    "memory_layers": [f"blocks.1.{name}" for name in MEMORY_BLOCK],
    "bank": ["banks.0.rows"],
}


def three_rates(**changes: GroupConfig) -> OptimizerConfig:
    groups = {
        "backbone": GroupConfig(lr=1e-3, weight_decay=0.1),
        "memory_layers": GroupConfig(lr=2e-3, weight_decay=0.2),
        "bank": GroupConfig(lr=4e-3, weight_decay=0.4),
    }
    return OptimizerConfig(**{**groups, **changes})


def members(optimizer: torch.optim.Optimizer, model: Transformer) -> dict[str, dict]:
    """Every parameter's optimizer group, by the parameter's name."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        names[id(parameter)]: group
        for group in optimizer.param_groups
        for parameter in group["params"]
    }


def test_every_parameter_is_in_the_group_that_its_name_says() -> None:
    model = build_model(MODEL)
    found: dict[str, list[str]] = {}
    for name, _ in model.named_parameters():
        found.setdefault(parameter_group(name), []).append(name)
    assert {group: sorted(names) for group, names in found.items()} == {
        group: sorted(names) for group, names in EXPECTED.items()
    }


def test_each_group_has_its_own_rate_and_decay_and_norms_and_biases_none() -> None:
    model = build_model(MODEL)
    optimizer = build_optimizer(model, three_rates(), fused=False)
    found = members(optimizer, model)
    rates = {"backbone": (1e-3, 0.1), "memory_layers": (2e-3, 0.2), "bank": (4e-3, 0.4)}
    assert sorted(found) == sorted(name for names in EXPECTED.values() for name in names)
    for group, names in EXPECTED.items():
        lr, decay = rates[group]
        for name in names:
            plain = "norm" in name or name.endswith("bias")
            assert found[name]["lr"] == lr, name
            assert found[name]["weight_decay"] == (0.0 if plain else decay), name
    set_learning_rates(optimizer, 0.5)
    assert found["banks.0.rows"]["lr"] == 2e-3 and found["norm.weight"]["lr"] == 5e-4


@pytest.mark.parametrize("frozen", ["backbone", "memory_layers", "bank"])
def test_a_frozen_group_keeps_every_bit_and_the_others_learn(frozen: str, tmp_path: Path) -> None:
    study = tiny_study(tmp_path, f"phases.facts.optimizer.{frozen}.freeze=true")
    model = build_model(study.arms["moc"].model, seed=0)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    train_phase(study, tmp_path, model=model)
    moved = {name: not torch.equal(before[name], p) for name, p in model.named_parameters()}
    for name, has_moved in moved.items():
        assert has_moved == (parameter_group(name) != frozen), name


def test_freezing_is_undone_by_the_next_phase() -> None:
    model = build_model(MODEL)
    freeze_groups(model, three_rates(bank=GroupConfig(freeze=True)))
    assert not model.banks[0].rows.requires_grad
    freeze_groups(model, three_rates())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_an_arm_may_freeze_the_bank_or_slow_it_from_the_second_phase_on(tmp_path: Path) -> None:
    """The controls `frozen bank` and `low bank learning rate` are plain settings of an arm."""
    path = tmp_path / "study.yaml"
    path.write_text("""
name: s
data: {people: {}, skills: {kind: skills}}
phases: {one: {mixture: {people: 1}}, two: {mixture: {skills: 1}}}
arms:
  frozen: {phases: {two: {optimizer: {bank: {freeze: true}}}}}
  slow: {phases: {two: {optimizer: {bank: {lr: 1e-5}}}}}
""")
    rates = {}
    for arm_name, arm in load_study(path).arms.items():
        for phase_name, phase in arm.phases.items():
            model = build_model(MODEL)
            freeze_groups(model, phase.optimizer)
            optimizer = build_optimizer(model, phase.optimizer, fused=False)
            found = {group["name"]: group["peak_lr"] for group in optimizer.param_groups}
            rates[arm_name, phase_name] = found
    others = {"backbone": 1e-3, "memory_layers": 1e-3}
    assert rates["frozen", "one"] == rates["slow", "one"] == {**others, "bank": 1e-3}
    assert rates["frozen", "two"] == others
    assert rates["slow", "two"] == {**others, "bank": 1e-5}


def test_nothing_left_to_train_is_explained() -> None:
    frozen = GroupConfig(freeze=True)
    config = three_rates(backbone=frozen, memory_layers=frozen, bank=frozen)
    model = build_model(MODEL)
    freeze_groups(model, config)
    with pytest.raises(ConfigError, match="every parameter group is frozen"):
        build_optimizer(model, config, fused=False)
