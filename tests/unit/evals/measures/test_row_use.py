"""Which chapters are read before and after a phase: figures that a user compares arms by."""

from __future__ import annotations

import math

import pytest
import torch

from evals.measures.overlap import overlap
from evals.measures.row_use import address_drift, row_use
from moc.model.config import ModelConfig, RouterConfig
from moc.model.transformer import Transformer, build_model
from tests.support.small_models import chapters

NUM_CHAPTERS = 6  # of which the first is shared


def model_of(scope: str) -> Transformer:
    """Reads memory in layers 1 and 2 of 3, with logits far enough apart to sort."""
    config = ModelConfig(
        vocab_size=32,
        num_layers=3,
        dim=16,
        num_heads=2,
        num_kv_heads=1,
        mlp_dim=16,
        init_std=0.5,
        memory=chapters(
            num_chapters=NUM_CHAPTERS,
            num_routed=2,
            chapter_tokens=2,
            layers="1,2",
            router=RouterConfig(scope=scope, segment_tokens=4),  # type: ignore[arg-type]
        ),
    )
    return build_model(config)


@pytest.mark.parametrize(("scope", "groups"), [("sequence", 1), ("segment", 3), ("token", 10)])
def test_picks_equal_a_count_by_hand(scope: str, groups: int) -> None:
    """In batches that do not divide the windows, and without leaving the model in eval mode."""
    model = model_of(scope).train()
    tokens = torch.randint(0, 32, (5, 10), generator=torch.Generator().manual_seed(0))
    use = row_use(model, tokens, batch_size=2)
    expected = {1: [0] * NUM_CHAPTERS, 2: [0] * NUM_CHAPTERS}
    for row in tokens:
        for layer, routing in zip((1, 2), model(row[None]).addresses, strict=True):
            logits = routing.logits_BGC[0].tolist()
            assert len(logits) == groups
            for group in logits:
                for chapter in sorted(range(1, NUM_CHAPTERS), key=lambda c, z=group: -z[c])[:2]:
                    expected[layer][chapter] += 1
    assert {layer: counts.tolist() for layer, counts in use.load.items()} == expected
    assert model.training


def test_a_model_without_a_router_uses_no_chapters() -> None:
    config = model_of("token").config
    assert config.memory is not None
    config.memory.chapters.num_routed = None
    tokens = torch.zeros(1, 4, dtype=torch.int64)
    assert row_use(build_model(config), tokens, batch_size=1).load == {}
    config.memory = None
    assert row_use(build_model(config), tokens, batch_size=1).load == {}


def test_overlap_by_hand() -> None:
    """Shares 4/8 3/8 1/8 0 and 1/8 1/8 0 6/8; a chapter counts as used from 1/40 on."""
    found = overlap([4, 3, 1, 0], [1, 1, 0, 6])
    assert found["mass"] == pytest.approx(1 / 8 + 1 / 8)
    assert found["jaccard"] == pytest.approx(2 / 4)


def test_overlap_ignores_how_many_windows_were_counted() -> None:
    assert overlap([10, 30, 60], [100, 300, 600]) == pytest.approx({"jaccard": 1.0, "mass": 1.0})


def test_disjoint_use_has_no_overlap() -> None:
    assert overlap(torch.tensor([5, 0, 0]), torch.tensor([0, 2, 2])) == {"jaccard": 0, "mass": 0}


def test_a_chapter_below_a_tenth_of_the_uniform_load_counts_as_unused() -> None:
    """Of 1000 picks on 5 chapters, 20 is a tenth of what each would have."""
    after = [0, 0, 500, 500, 0]
    assert overlap([20, 0, 480, 500, 0], after)["jaccard"] == pytest.approx(2 / 3)
    assert overlap([19, 0, 481, 500, 0], after)["jaccard"] == 1


def test_shared_chapters_are_left_out() -> None:
    """They are never picked: counted, they would lower what a tenth of the even load is."""
    before, after = [0, 0, 8, 142, 150], [0, 0, 0, 150, 150]
    assert overlap(before, after, num_always=2)["jaccard"] == 1
    assert overlap(before, after)["jaccard"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("after", [[1, 2], [0, 0, 0]])
def test_counts_that_do_not_compare_are_refused(after: list[int]) -> None:
    with pytest.raises(ValueError, match="row"):
        overlap([1, 2, 3], after)


def test_router_drift_by_hand() -> None:
    """Weights and bias as one vector: (2, 1, 2) moved by (3, 0, 4)."""
    weight, bias = (
        "blocks.7.memory.address.router.linear.weight",
        "blocks.7.memory.address.router.linear.bias",
    )
    before = {weight: torch.tensor([[2.0, 1.0]]), bias: torch.tensor([2.0])}
    after = {weight: torch.tensor([[5.0, 1.0]]), bias: torch.tensor([6.0])}
    others = {
        "blocks.7.memory.address.router.selection_bias": torch.zeros(1),
        "norm.weight": torch.ones(1),
    }
    moved = {name: tensor + 1 for name, tensor in others.items()}
    assert address_drift({**before, **others}, {**after, **moved}) == pytest.approx({7: 5 / 3})


def test_router_drift_of_a_whole_model() -> None:
    """Every layer with a router, and no other; doubling a router is a drift of one."""
    before = model_of("segment").state_dict()
    after = {name: tensor.clone() for name, tensor in before.items()}
    for name in after:
        if name.startswith("blocks.2.memory.address.router.linear"):
            after[name] *= 2
    drift = address_drift(before, after)
    assert drift == pytest.approx({1: 0.0, 2: 1.0})
    assert all(math.isfinite(value) for value in drift.values())


def test_health_is_what_the_first_batch_says_of_every_layer() -> None:
    model = model_of("token")
    tokens = torch.randint(0, 32, (3, 10), generator=torch.Generator().manual_seed(0))
    found = row_use(model, tokens, batch_size=2).health
    with torch.no_grad():
        addresses = model(tokens[:2], measure=True).addresses
    assert list(found) == [1, 2]
    for layer, address in zip((1, 2), addresses, strict=True):
        expected = {name: float(value) for name, value in address.health.items()}
        assert expected and found[layer] == pytest.approx(expected)
