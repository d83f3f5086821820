"""Another bank, or none: what a control changes, and that nothing of it stays behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from evals.measures.controls import (
    apply_control,
    control_names,
    knocked_out,
    most_picked,
    swapped_bank,
)
from moc.config.load import load_study
from moc.config.schema import ControlConfig
from moc.errors import CheckpointError, ConfigError
from moc.model import ModelConfig, Transformer, build_model, write_safetensors
from tests.support.small_models import chapters

EARLIER = ["facts", "skills"]


def config(**memory: object) -> ModelConfig:
    settings = {"num_chapters": 6, "num_routed": 2, "chapter_tokens": 3, "layers": "all"}
    return ModelConfig(
        vocab_size=32,
        num_layers=2,
        dim=16,
        num_heads=2,
        num_kv_heads=1,
        mlp_dim=16,
        memory=chapters(output_init="normal", **settings | memory),
    )


def model(seed: int = 0, **memory: object) -> Transformer:
    return build_model(config(**memory), seed).eval()


def bits_of(model: Transformer) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in model.state_dict().items()}


def logits(model: Transformer) -> Tensor:
    tokens = torch.arange(64).reshape(2, 32) % 32
    with torch.no_grad():
        return model(tokens).logits_BLV


def loads(**by_layer: list[int]) -> dict:
    """A boundary's memory record of two sources, one of which never picks anything."""
    load = {layer.removeprefix("layer"): picks for layer, picks in by_layer.items()}
    nothing = {layer: [0] * len(picks) for layer, picks in load.items()}
    return {"sources": {"people": {"load": load}, "skills": {"load": nothing}}}


# names


def test_what_is_asked_by_default_is_the_whole_bank_and_the_one_before() -> None:
    names = control_names(ControlConfig(), EARLIER, config())
    assert names == ["knockout-bank", "bank_swap-skills"]
    assert control_names(ControlConfig(), [], config()) == ["knockout-bank"]


@pytest.mark.parametrize(
    ("knockouts", "bank_swap", "expected"),
    [
        (["top-2", "row-0"], [], ["knockout-top-2", "knockout-row-0"]),
        ([], ["all"], ["bank_swap-facts", "bank_swap-skills"]),
        ([], ["facts", "previous", "all"], ["bank_swap-facts", "bank_swap-skills"]),
        ([], ["later"], []),  # this boundary comes before it
    ],
)
def test_names_of_controls(knockouts: list[str], bank_swap: list[str], expected: list[str]) -> None:
    asked = ControlConfig(knockouts=knockouts, bank_swap=bank_swap)
    assert control_names(asked, EARLIER, config()) == expected


def test_no_memory_no_controls_and_no_router_no_chapters_read_most() -> None:
    asked = ControlConfig(knockouts=["top-1", "bank"])
    assert control_names(asked, EARLIER, ModelConfig(memory=None)) == []
    without_router = config(num_routed=None)
    assert control_names(asked, [], without_router) == ["knockout-bank"]


# what they do


def test_knockout_of_the_bank_zeroes_it_and_puts_every_bit_back() -> None:
    one = model()
    one.banks[0].rows.data[0, 0, :2] = torch.tensor([-0.0, float("nan")])  # bits, not values
    before = bits_of(one)
    with knocked_out(one, None):
        assert not one.banks[0].rows.any()
    assert bits_of(one) == before


def test_without_the_bank_the_model_is_its_backbone() -> None:
    one, backbone = model(), build_model(ModelConfig(**vars(config()) | {"memory": None}), 0).eval()
    assert not torch.allclose(logits(one), logits(backbone))
    with knocked_out(one, None):
        torch.testing.assert_close(logits(one), logits(backbone))


def test_one_chapter_of_every_bank() -> None:
    one = model(layers_per_bank=1)
    before = [bank.rows.detach().clone() for bank in one.banks]
    assert len(before) == 2
    with apply_control(one, "knockout-row-4", banks={}, use={}):
        for bank, old in zip(one.banks, before, strict=True):
            assert not bank.rows[4].any()
            kept = [0, 1, 2, 3, 5]
            assert torch.equal(bank.rows[kept], old[kept])
    assert all(torch.equal(b.rows, old) for b, old in zip(one.banks, before, strict=True))


def test_nothing_stays_when_the_evaluation_fails() -> None:
    one = model()
    before = bits_of(one)
    with pytest.raises(RuntimeError, match="out of memory"), knocked_out(one, None):
        raise RuntimeError("out of memory")
    with pytest.raises(KeyboardInterrupt), swapped_bank(one, model(1).state_dict()):
        raise KeyboardInterrupt
    assert bits_of(one) == before


def test_the_most_picked_chapters_by_hand() -> None:
    """Summed over the layers of a bank and over sources; chapter 0 is shared and never counts."""
    use = loads(layer0=[0, 5, 0, 4, 0, 1], layer1=[0, 0, 3, 4, 0, 4])
    use["sources"]["skills"]["load"]["1"] = [0, 1, 0, 0, 0, 0]
    assert most_picked(model(), use, 2) == [[3, 1]]  # sums 6 3 8 0 5
    assert most_picked(model(layers_per_bank=1), use, 2) == [[1, 3], [3, 5]]
    assert most_picked(model(), loads(layer0=[0] * 6, layer1=[0] * 6), 2) == [[1, 2]]


def test_knockout_of_the_most_picked_chapters() -> None:
    one = model(layers_per_bank=1)
    use = loads(layer0=[0, 5, 0, 4, 0, 1], layer1=[0, 0, 3, 4, 0, 4])
    before = bits_of(one)
    with apply_control(one, "knockout-top-2", banks={}, use=use):
        zeroed = [(~bank.rows.flatten(1).any(1)).nonzero().flatten().tolist() for bank in one.banks]
        assert zeroed == [[1, 3], [3, 5]]
    assert bits_of(one) == before


def test_a_chapter_that_is_never_picked_is_not_missed() -> None:
    """And one that is, is: knocking out what the router reads changes the logits."""
    one = model(num_routed=1)
    tokens = torch.arange(64).reshape(2, 32) % 32
    with torch.no_grad():
        picked = {int(i) for r in one(tokens).addresses for i in r.index_BGN.flatten()}
    unread = sorted(set(range(6)) - picked)
    before = logits(one)
    assert unread
    with knocked_out(one, [unread]):
        assert torch.equal(logits(one), before)
    with knocked_out(one, [[max(picked)]]):
        assert not torch.equal(logits(one), before)


def test_bank_swap_is_the_model_with_only_that_bank_replaced(tmp_path: Path) -> None:
    one, other = model(), model(seed=1)
    write_safetensors(other.state_dict(), tmp_path / "model.safetensors")
    hybrid = model()
    hybrid.banks.load_state_dict(other.banks.state_dict())
    before = bits_of(one)
    banks = {"facts": tmp_path / "model.safetensors"}
    with apply_control(one, "bank_swap-facts", banks=banks, use={}):
        assert torch.equal(logits(one), logits(hybrid))
        assert not torch.equal(logits(one), logits(other))
    assert bits_of(one) == before


# what they refuse


def test_a_chapter_that_is_not_there() -> None:
    for chapter in (6, -1):
        refused = pytest.raises(ConfigError, match=f"no row {chapter}; the bank has 0 to 5")
        with refused, knocked_out(model(), [[chapter]]):
            pass


def test_a_model_without_memory_and_a_bank_of_another_shape() -> None:
    dense = build_model(ModelConfig(**vars(config()) | {"memory": None}))
    for control in (knocked_out(dense, None), swapped_bank(dense, {})):
        with pytest.raises(ConfigError, match="needs a model with memory"), control:
            pass
    one = model()
    wrong = pytest.raises(CheckpointError, match=r"bank 0 .* of shape \(9, 3, 16\), not \(6, 3")
    with wrong, swapped_bank(one, model(num_chapters=9).state_dict()):
        pass
    with pytest.raises(CheckpointError, match="missing"), swapped_bank(one, {}):
        pass
    with pytest.raises(ConfigError, match="no control 'bank_swap-later' here"):
        apply_control(one, "bank_swap-later", banks={}, use={})


STUDY = """
name: controlled
data: {people: {kind: facts}, skills: {kind: skills}}
phases: {facts: {mixture: {people: 1}}, skills: {mixture: {skills: 1}}}
arms: {moc: {}, dense: {model: {memory: null}}}
"""


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("knockouts=[banks]", "knockouts: 'banks' is none of 'bank', 'top-<n>'"),
        ("knockouts=[top-0]", "knockouts: 'top-0' is none of"),
        ("knockouts=[row--1]", "knockouts: 'row--1' is none of"),
        ("knockouts=[row-65]", "arms.moc has no 'row-65'; its rows are 0 to 64"),
        ("knockouts=[top-65]", "'top-65' is more than the 64 rows that arms.moc can pick"),
        ("bank_swap=[fact]", "bank_swap: 'fact' is neither 'previous' nor 'all' nor"),
        ("bank_swap=[skills]", "'skills' is neither 'previous' nor 'all' nor a phase before the"),
        ("num_items=0", "evals.controls.num_items must be from 1"),
    ],
)
def test_a_mistyped_control_is_said_in_one_line(tmp_path: Path, setting: str, words: str) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(STUDY)
    with pytest.raises(ConfigError) as caught:
        load_study(path, [f"evals.controls.{setting}"])
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_the_last_chapter_and_all_routed_ones_can_be_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(STUDY)
    asked = json.dumps(["bank", "row-64", "top-64"])
    swapped = "evals.controls.bank_swap=[facts,all]"
    study = load_study(path, [f"evals.controls.knockouts={asked}", swapped])
    names = control_names(study.evals.controls, ["facts"], study.arms["moc"].model)
    assert names == [
        "knockout-bank",
        "knockout-row-64",
        "knockout-top-64",
        "bank_swap-facts",
    ]


def test_a_row_that_stands_for_all_can_only_be_knocked_out_as_a_bank() -> None:
    asked = ControlConfig(knockouts=["bank", "top-1", "row-0"], bank_swap=[])
    assert control_names(asked, [], config()) == [f"knockout-{w}" for w in asked.knockouts]
    assert control_names(asked, [], config(rows="one")) == ["knockout-bank"]
