"""Knockout and swap of banks of every kind.

What would break for a user: a score without its bank that still had some of it.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from evals.measures.controls import knocked_out, most_picked, swapped_bank
from evals.measures.row_use import row_use
from moc.errors import CheckpointError
from moc.model import Transformer
from tests.support.helpers_training import copy_weights
from tests.support.kinds import KINDS, model_of, third_kind
from tests.support.small_models import tokens_of

TOKENS_BL = tokens_of(3, 11)


@pytest.fixture(autouse=True, scope="module")
def known() -> Iterator[None]:
    with third_kind():
        yield


@torch.no_grad()
def logits(model: Transformer) -> Tensor:
    return model(TOKENS_BL).logits_BLV


@torch.no_grad()
def logits_with(name: str, change) -> Tensor:
    """Of a model whose banks ``change`` was called on, by hand."""
    model = model_of(name)
    for bank_RX in model.bank_rows():
        change(bank_RX)
    return logits(model)


def assert_put_back(model: Transformer, weights: dict[str, Tensor]) -> None:
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, weights[name]), name


@pytest.mark.parametrize("name", KINDS)
def test_without_its_bank_a_memory_adds_nothing(name: str) -> None:
    model = model_of(name)
    weights, before = copy_weights(model), logits(model)
    with knocked_out(model, None):
        found = logits(model)
    assert_put_back(model, weights)
    silent = model_of(name)
    with torch.no_grad():
        for layer in (0, 2):
            silent.blocks[layer].memory.read.out.weight.zero_()
    assert torch.equal(found, logits(silent)) and (found - before).abs().max() > 0.1


@pytest.mark.parametrize("name", KINDS)
def test_single_rows_are_zeroed(name: str) -> None:
    model = model_of(name)
    weights = copy_weights(model)
    num_rows = len(model.bank_rows()[0])
    used = row_use(model, TOKENS_BL, batch_size=3).load[0]
    row = 0 if num_rows == 1 else int(used.argmax())
    with knocked_out(model, [[row]] * len(model.banks)):
        found = logits(model)
    assert_put_back(model, weights)
    assert torch.equal(found, logits_with(name, lambda bank_RX: bank_RX[row].zero_()))
    assert not torch.equal(found, logits(model))


@pytest.mark.parametrize("name", [name for name in KINDS if "one row" not in name])
def test_the_rows_picked_most(name: str) -> None:
    """Over sources and the layers that share a bank, counted here position by position."""
    model = model_of(name)
    kind = model.kind
    assert kind is not None
    sources = {}
    counts = [dict.fromkeys(range(kind.num_always, kind.num_rows), 0) for _ in model.banks]
    for source, seed in (("a", 1), ("b", 2)):
        tokens_NL = tokens_of(2, 11, seed)
        load = row_use(model, tokens_NL, batch_size=1).load
        sources[source] = {"load": {str(layer): r.tolist() for layer, r in load.items()}}
        with torch.no_grad():
            addresses = model(tokens_NL).addresses
        for n, address in enumerate(addresses):
            for row in address.index_BGN[..., kind.num_always :].flatten().tolist():
                counts[n if len(model.banks) == 2 else 0][row] += 1
    found = most_picked(model, {"sources": sources}, 3)
    expected = [sorted(of, key=lambda row, of=of: (-of[row], row))[:3] for of in counts]
    assert found == expected


@pytest.mark.parametrize("name", KINDS)
def test_another_bank_in_its_place(name: str) -> None:
    model = model_of(name)
    weights = copy_weights(model)
    other = {key: tensor * -2 for key, tensor in weights.items()}
    with swapped_bank(model, other):
        found = logits(model)
    assert_put_back(model, weights)
    assert torch.equal(found, logits_with(name, lambda bank_RX: bank_RX.mul_(-2)))
    small = {key: tensor[:, :-1] for key, tensor in weights.items() if key.startswith("banks.")}
    with pytest.raises(CheckpointError, match="bank swap"), swapped_bank(model, small):
        pass
