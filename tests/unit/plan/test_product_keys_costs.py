"""What product keys cost: by hand, and as ``torch.utils.flop_counter`` and autograd see it.

What would break for a user: an iso-FLOP baseline of a rival that is given too much or too little.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from moc.config.load import load_study
from moc.model import MemoryConfig, ModelConfig, ProductKeysConfig, build_model
from moc.model.transformer import parameter_group
from moc.plan.activations import activation_bytes
from moc.plan.flops import (
    hardware_train_flops_per_token,
    paper_forward_flops,
    parameter_counts,
)
from moc.plan.study_plan import plan_study, violations
from moc.train.optim import freeze_groups
from tests.support.flop_counting import executed_flops_per_token, saved_bytes
from tests.support.helpers_training import tiny_study

# small enough to count by hand: D = 4, 2 heads of width 6, 5 half-keys, 3 values read
HAND = ModelConfig(
    vocab_size=10, num_layers=1, dim=4, num_heads=2, num_kv_heads=1, mlp_dim=3, memory=None
)
KEYS = ProductKeysConfig(num_keys=5, num_heads=2, num_read=3, key_dim=6)
BASE = MemoryConfig(kind="product_keys", layers="0", product_keys=KEYS)
# as large as it takes for the model's matrices to be most of its work
SMALL = ModelConfig(
    vocab_size=97, num_layers=3, dim=48, num_heads=4, num_kv_heads=2, mlp_dim=72, memory=None
)
OF_SMALL = ProductKeysConfig(num_keys=12, num_heads=4, num_read=6, key_dim=20)
SHAPES: dict[str, dict[str, object]] = {
    "as it comes": {},
    "layer norm": {"product_keys": replace(OF_SMALL, query_norm="layer")},
    "batch norm": {"product_keys": replace(OF_SMALL, query_norm="batch")},
    "no gate": {"gate": "one"},
    "random": {"address": "random"},
    "one row": {"rows": "one"},
    "variant B": {"variant": "B"},
    "own banks": {"layers": "all", "layers_per_bank": 1},
    "two to a bank": {"layers": "all", "layers_per_bank": 2},
    "few keys": {"product_keys": replace(OF_SMALL, num_keys=3, num_read=8)},
    "one head, its own width": {"product_keys": replace(OF_SMALL, num_heads=1, key_dim=None)},
}


def of_small(name: str) -> ModelConfig:
    memory = MemoryConfig(kind="product_keys", layers="1,2", product_keys=OF_SMALL)
    return replace(SMALL, memory=replace(memory, **SHAPES[name]))  # type: ignore[arg-type]


def added(**changes: object) -> int:
    """FLOPs that one memory layer adds to a forward pass of 2 sequences of 2 positions."""
    keys = {k: v for k, v in changes.items() if hasattr(KEYS, k)}
    rest = {k: v for k, v in changes.items() if not hasattr(KEYS, k)}
    memory = replace(BASE, product_keys=replace(KEYS, **keys), **rest)  # type: ignore[arg-type]
    with_memory = paper_forward_flops(replace(HAND, memory=memory), 2, batch=2)
    return with_memory - paper_forward_flops(HAND, 2, batch=2)


def test_paper_accounting_by_hand() -> None:
    # N = 4 positions, so 8 queries of 2 halves of width 3
    query = 2 * 4 * 4 * 12
    scores = 2 * (2 * 8 * 3 * 5)
    best = 2 * (8 * 5 * 2)  # 3 of 5, ceil(log2 3) = 2
    sums = 8 * 9
    best_sums = 8 * 9 * 2
    softmax = 5 * 8 * 3
    weighted_sum = 2 * 8 * 3 * 4
    out = 2 * 4 * 4 * 4
    gate = 2 * 4 * 4 * 4 + 5 * 4 * 4
    layer = 4 * (4 * 4 + 4) + 4 * 4  # norm, residual
    plain = query + scores + best + sums + best_sums + softmax + weighted_sum + out + layer
    assert added() == plain + gate
    assert added(gate="one") == plain
    for norm in ("layer", "batch"):
        assert added(query_norm=norm) == plain + gate + 8 * (4 * 6 + 4)
    mlp = 288 + 60 + 80 + 16
    assert added(variant="B") == plain + gate + mlp
    # neither a frozen query nor a single row spares a forward pass anything
    assert added(address="random") == added(rows="one") == plain + gate


def test_paper_accounting_of_more_values_than_half_keys() -> None:
    """5 of 2 x 2 halves cannot be: there are 3 x 3 sums, of which 5 are the best."""
    # 8 queries, 3 half-keys of width 3: all kept, ceil(log2 3) = 2; ceil(log2 5) = 3
    few = added(num_keys=3, num_read=5)
    scores, best = 2 * (2 * 8 * 3 * 3), 2 * (8 * 3 * 2)
    sums, best_sums = 8 * 9, 8 * 9 * 3
    reads = 5 * 8 * 5 + 2 * 8 * 5 * 4
    query, maps, layer = 384, 128 + 128 + 80, 80 + 16
    assert few == query + scores + best + sums + best_sums + reads + maps + layer


def test_parameters_by_hand() -> None:
    counts = parameter_counts(replace(HAND, memory=BASE))
    # norm; query; half-keys of 2 heads and 2 sides; gate and out
    assert counts.memory_layers == 4 + 4 * 12 + 2 * 2 * 5 * 3 + 2 * 16
    assert counts.bank == 25 * 4
    normed = replace(BASE, product_keys=replace(KEYS, query_norm="batch"), gate="one")
    assert parameter_counts(replace(HAND, memory=normed)).memory_layers == 4 + 48 + 60 + 12 + 16


@pytest.mark.parametrize("name", SHAPES)
def test_parameter_counts_are_those_of_the_model(name: str) -> None:
    counted = {"backbone": 0, "memory_layers": 0, "bank": 0}
    for parameter_name, parameter in build_model(of_small(name)).named_parameters():
        counted[parameter_group(parameter_name)] += parameter.numel()
    planned = parameter_counts(of_small(name))
    assert list(counted.values()) == [planned.backbone, planned.memory_layers, planned.bank]


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("micro_batch", [1, 4])
@pytest.mark.parametrize("name", SHAPES)
def test_hardware_accounting_is_what_flop_counter_sees(
    name: str, micro_batch: int, checkpointing: bool
) -> None:
    config = replace(of_small(name), activation_checkpointing=checkpointing)
    planned = hardware_train_flops_per_token(config, 24, micro_batch)
    assert planned == pytest.approx(executed_flops_per_token(config, micro_batch), rel=1e-2)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("name", SHAPES)
def test_activation_estimate_is_near_what_autograd_saves(name: str, bf16: bool) -> None:
    config = of_small(name)
    estimate = activation_bytes(config, 64, 4, bf16=bf16)
    assert estimate == pytest.approx(saved_bytes(config, bf16=bf16), rel=0.15)


STUDY = """
name: t
model: {preset: tiny, memory: {kind: product_keys, product_keys: {num_keys: 40}}}
data: {people: {kind: facts}}
phases:
  pretrain: {mixture: {people: 1}, tokens: 819_200, tokens_per_step: 8192, context_length: 128}
arms:
  keys: {}
  flops: {model: {memory: null}, iso_flop: {target: keys}}
  executed: {model: {memory: null}, iso_flop: {target: keys, accounting: hardware}}
  parameters: {model: {memory: null}, iso_param: {target: keys}}
  chapters: {model: {memory: {kind: chapters}}, iso_flop: {target: keys}}
"""


def test_baselines_of_an_arm_with_product_keys_are_found(tmp_path) -> None:
    (tmp_path / "study.yaml").write_text(STUDY)
    plan = plan_study(load_study(tmp_path / "study.yaml"))
    assert violations(plan) == []
    arms = plan.arms
    for name in ("flops", "executed", "chapters"):
        match = arms[name].iso_flop
        assert match is not None and abs(match.relative_error) <= 0.005
    assert arms["parameters"].parameters.total == pytest.approx(
        arms["keys"].parameters.total, rel=0.005
    )
    assert arms["keys"].parameters.bank == 40 * 40 * 128


@pytest.mark.parametrize("scope", ["sequence", "segment", "token"])
@pytest.mark.parametrize("kind", ["chapters", "product_keys"])
def test_what_stays_random_is_not_counted_as_training(tmp_path, kind, scope):
    study = tiny_study(
        tmp_path,
        f"model.memory.kind={kind}",
        f"model.memory.chapters.router.scope={scope}",
        "model.memory.address=random",
    )
    planned = plan_study(study).arms["moc"]
    model = build_model(study.arms["moc"].model)
    freeze_groups(model, study.phases["facts"].optimizer)
    trains = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert planned.trainable == trains
    assert planned.parameters.total == sum(p.numel() for p in model.parameters())
    assert (planned.trainable < planned.parameters.total) == (kind == "product_keys")
