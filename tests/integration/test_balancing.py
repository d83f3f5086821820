"""Chapters are used evenly without a loss that says so: the selection bias, nudged after each step.

That the bias is equal on one and two ranks is in test_two_ranks.py, that a killed run goes on with
it in tests/faults.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import moc.train.step
from moc.callbacks.memory_use import load_statistics
from moc.model.transformer import Transformer, build_model
from moc.train.addresses import nudge
from tests.support.helpers_training import Recorder, tiny_study, train_phase
from tests.support.spoiling import nan_in_second_step, spoiled

RATE = 0.25
BIASED = f"model.memory.chapters.router.bias_rate={RATE}"
# nothing learns, so that every step can be recounted with the first weights
STILL = [f"phases.facts.optimizer.{group}.lr=0" for group in ("backbone", "memory_layers", "bank")]
STILL += ["phases.facts.tokens=768", "model.memory.output_init=normal"]
STILL += ["model.init_std=0.5"]  # logits that differ by more than a nudge


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the tests share a tokenizer and its caches."""
    return tmp_path_factory.mktemp("shared")


def watch(folder: Path, *overrides: str, model: Transformer | None = None) -> Recorder:
    study = tiny_study(folder, *overrides)
    return train_phase(study, folder, model=model, recorder=Recorder(weights=True))[1]


def biases(recorder: Recorder) -> list[Tensor]:
    """After each step: (layers, C)."""
    names = [f"blocks.{layer}.memory.address.router.selection_bias" for layer in (0, 1)]
    return [torch.stack([weights[name] for name in names]) for weights in recorder.weights]


def test_nudges_by_hand() -> None:
    """Over two steps: up below the mean, down above it, still at it."""
    bias = torch.tensor([0.0, 0.5, 0.0])
    nudge(bias, torch.tensor([1, 6, 2]), 0.25)  # mean 3
    assert bias.tolist() == [0.25, 0.25, 0.25]
    nudge(bias, torch.tensor([3, 3, 3]), 0.25)
    assert bias.tolist() == [0.25, 0.25, 0.25]
    nudge(bias, torch.tensor([2, 3, 4]), 0.25)
    assert bias.tolist() == [0.5, 0.25, 0.0]


@pytest.mark.parametrize("scope", ["sequence", "segment", "token"])
def test_every_step_picks_with_the_bias_of_the_step_before(folder: Path, scope: str) -> None:
    overrides = (*STILL, BIASED, f"model.memory.chapters.router.scope={scope}")
    recorder = watch(folder, *overrides)
    unbiased = build_model(tiny_study(folder, *overrides).arms["moc"].model, seed=0)
    bias = [[0.0] * 9, [0.0] * 9]
    for result, batch, found in zip(
        recorder.results, recorder.batches, biases(recorder), strict=True
    ):
        # the read of layer 0 changes with its bias, and with it what layer 1 sees
        for layer, block in enumerate(unbiased.blocks):
            block.memory.address.router.selection_bias.copy_(torch.tensor(bias[layer]))  # type: ignore
        with torch.no_grad():
            routing = unbiased(batch["tokens"].flatten(0, 1)[:, :-1]).addresses
        for layer in (0, 1):
            picks = [0] * 9
            for logits in routing[layer].logits_BGC.flatten(0, 1).tolist():
                biased = [z + b for z, b in zip(logits, bias[layer], strict=True)]
                for chapter in sorted(range(1, 9), key=lambda c, z=biased: -z[c])[:2]:
                    picks[chapter] += 1
            assert result["use"][layer] == picks
            mean = sum(picks) / 8
            for c in range(1, 9):  # 0 is shared and stays
                bias[layer][c] += RATE * ((picks[c] < mean) - (picks[c] > mean))
        assert found.tolist() == bias
    assert any(map(any, bias))


@pytest.mark.parametrize(
    ("coefficient", "rate", "low", "high"),
    [(0, 0, 3.5, 4), (0, 0.1, 1, 1.6), (1, 0.1, 1, 1.6)],
    ids=["neither", "bias alone", "loss and bias"],
)
def test_a_skewed_router_becomes_balanced(
    folder: Path, coefficient: float, rate: float, low: float, high: float
) -> None:
    """Two of eight chapters take nearly all picks, which is a max/mean of 4."""
    study = [
        f"phases.facts.tokens={60 * 256}",
        "phases.facts.schedule.kind=constant",
        "phases.facts.optimizer.backbone.lr=0",
        "phases.facts.optimizer.bank.lr=0",
        "phases.facts.optimizer.memory_layers.lr=0.01",
        "model.init_std=0.2",
        "model.memory.chapters.router.scope=token",
        "model.memory.chapters.router.z_loss_coefficient=0",
        f"model.memory.chapters.router.balance_coefficient={coefficient}",
        f"model.memory.chapters.router.bias_rate={rate}",
    ]
    model = build_model(tiny_study(folder, *study).arms["moc"].model, seed=0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("router.linear.bias"):
                parameter[1:3] = 2.0
    _, recorder = train_phase(tiny_study(folder, *study), folder, model=model)
    picks = torch.tensor([result["use"] for result in recorder.results])
    for layer in (0, 1):
        first, last = (steps[:, layer, 1:].sum(0) for steps in (picks[:1], picks[-10:]))
        assert load_statistics(first)["load_max_over_mean"] > 3
        assert low <= load_statistics(last)["load_max_over_mean"] <= high


def test_the_bias_does_not_depend_on_micro_batches(folder: Path) -> None:
    whole, cut = (
        biases(watch(folder, *STILL, BIASED, f"phases.facts.micro_batch={size}")) for size in (8, 1)
    )
    assert all(torch.equal(a, b) for a, b in zip(whole, cut, strict=True))
    assert whole[-1].any()


def test_a_skipped_step_does_not_nudge(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its picks come from activations that may be NaN."""
    monkeypatch.setattr(moc.train.step, "predict", spoiled(nan_in_second_step))
    recorder = watch(folder, *STILL, BIASED)
    assert [result["skipped"] for result in recorder.results] == [False, True, False]
    first, second, third = biases(recorder)
    assert first.any() and torch.equal(first, second) and not torch.equal(second, third)


def test_frozen_memory_layers_keep_their_bias(folder: Path) -> None:
    recorder = watch(folder, *STILL, BIASED, "phases.facts.optimizer.memory_layers.freeze=true")
    assert not biases(recorder)[-1].any()


def test_without_a_rate_there_is_no_bias(folder: Path) -> None:
    """Nor an entry in files that older readers would not know."""
    recorder = watch(folder, *STILL)
    assert not [name for name in recorder.weights[0] if "selection_bias" in name]
