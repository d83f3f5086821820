"""Stored bits of models whose knowledge is known: all of it, none, half, and one that is wrong."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from evals.measures.knowledge import knowledge_items, knowledge_record, needed_bits

BITS = {"color": 3.0, "shape": 3.0}
VALUES = 8  # tokens 0 to 7; keys are 8 to 15, attributes 16 and 17, the end 18
NUM_TOKENS = 19


@dataclass
class Output:
    logits_BLV: Tensor


class Table(nn.Module):
    """Says the value that stands in a table, with a probability; else any value alike."""

    def __init__(self, table: dict[tuple[int, int], int], sure: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.table, self.sure = table, sure
        self.calls = 0

    def forward(self, tokens_BL: Tensor, **_: Any) -> Output:
        self.calls += 1
        logits = torch.full((*tokens_BL.shape, NUM_TOKENS), -100.0)
        logits[..., :VALUES] = 0.0
        for b, row in enumerate(tokens_BL.tolist()):
            for place, token in enumerate(row):
                value = self.table.get((row[0], token))
                if value is not None:
                    rest = max(1 - self.sure, 1e-30) / (VALUES - 1)
                    logits[b, place, :VALUES] = math.log(rest)
                    logits[b, place, value] = math.log(self.sure)
        return Output(logits)


def documents(num: int = 8) -> tuple[list[list[int]], list[np.ndarray], dict]:
    """Key, then both attributes with their values."""
    truth = {(8 + n, 16 + a): (3 * n + a) % VALUES for n in range(num) for a in range(2)}
    ids, column = [], []
    for n in range(num):
        order = (0, 1) if n % 2 else (1, 0)
        row = [8 + n]
        for a in order:
            row += [16 + a, truth[8 + n, 16 + a]]
        ids.append(row)
        column.append(np.array([-1, -1, order[0], -1, order[1]]))
    return ids, column, truth


def record_of(model: nn.Module, **options: Any) -> dict[str, Any]:
    ids, column, _ = documents()
    options = {"context_length": 16, "batch_size": 4} | options
    needed = needed_bits(model, ids, column, 2, **options)  # type: ignore[arg-type]
    return knowledge_record(needed, BITS, 1000)


def test_who_knows_the_table_holds_all_of_it() -> None:
    found = record_of(Table(documents()[2]))
    assert found["demand"] == found["stored"] == pytest.approx(6000) and found["right"] == 1


def test_who_guesses_holds_nothing() -> None:
    found = record_of(Table({}))
    assert found["stored"] == pytest.approx(0, abs=1e-2)
    assert found["right"] == pytest.approx(1 / 8)  # the first of equals, by hand: value 0


def test_who_knows_half_of_the_attributes_holds_half() -> None:
    truth = {key: value for key, value in documents()[2].items() if key[1] == 16}
    found = record_of(Table(truth))
    assert found["stored"] == pytest.approx(3000, abs=1e-2)
    assert found["attributes"]["color"] == {"bits": 3.0, "stored": pytest.approx(3), "right": 1.0}
    assert found["attributes"]["shape"]["stored"] == pytest.approx(0, abs=1e-5)


def test_a_known_probability_is_as_many_bits() -> None:
    found = record_of(Table(documents()[2], sure=0.5))
    assert found["stored"] == pytest.approx(1000 * 2 * (3 - 1)) and found["right"] == 1


def test_who_is_wrong_and_sure_holds_nothing_rather_than_less() -> None:
    wrong = {key: (value + 1) % VALUES for key, value in documents()[2].items()}
    found = record_of(Table(wrong, sure=0.99))
    assert found["stored"] == 0 and found["right"] == 0


def test_values_of_several_tokens_cost_their_sum_and_are_right_as_a_whole() -> None:
    ids, column, truth = documents()
    longer = [[*row, 16, truth[row[0], 16]] for row in ids]  # color is said twice: one value
    of_longer = [np.array([*c, -1, 0]) for c in column]
    model = Table(truth, sure=0.5)
    needed = needed_bits(model, longer, of_longer, 2, context_length=16, batch_size=4)
    assert needed.bits_NA[:, 0] == pytest.approx(2) and needed.bits_NA[:, 1] == pytest.approx(1)
    half_right = {k: v if k[1] == 16 else v + 1 for k, v in truth.items()}
    needed = needed_bits(Table(half_right), longer, of_longer, 2, context_length=16, batch_size=4)
    assert needed.right_NA[:, 0].all() and not needed.right_NA[:, 1].any()


@pytest.mark.parametrize("length", [1, 2, 3, 4])
def test_what_is_cut_off_is_not_known_and_not_counted(length: int) -> None:
    ids, column, truth = documents()
    needed = needed_bits(Table(truth), ids, column, 2, context_length=length, batch_size=4)
    for n, of_document in enumerate(column):
        for attribute in range(2):
            place = of_document.tolist().index(attribute)
            assert math.isnan(needed.bits_NA[n, attribute]) == (place > length)
    found = knowledge_record(needed, BITS, 10)
    assert set(found["attributes"]) == (set() if length < 2 else {"color", "shape"})


def test_a_value_whose_end_is_cut_off_is_not_known() -> None:
    ids, _, truth = documents(1)
    longer = [[*ids[0][:3], 16, 5]]  # shape is said by the token that is read and one that is not
    of_longer = [np.array([-1, -1, 1, -1, 1])]
    needed = needed_bits(Table(truth), longer, of_longer, 2, context_length=3, batch_size=4)
    assert math.isnan(needed.bits_NA[0, 1]) and not needed.right_NA[0, 1]


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_batches_change_nothing(batch_size: int) -> None:
    ids, column, truth = documents()
    ids, column = [*ids, [8, 16, 5]], [*column, np.array([-1, -1, 0])]  # of another length
    model = Table(truth, sure=0.7)
    found = needed_bits(model, ids, column, 2, context_length=16, batch_size=batch_size)
    one = [needed_bits(model, [i], [c], 2, context_length=16, batch_size=1)
           for i, c in zip(ids, column, strict=True)]  # fmt: skip
    assert np.array_equal(found.bits_NA, np.concatenate([x.bits_NA for x in one]), equal_nan=True)
    assert np.array_equal(found.right_NA, np.concatenate([x.right_NA for x in one]))


def test_lines_say_who_needed_what() -> None:
    ids, column, truth = documents(2)
    needed = needed_bits(Table(truth, sure=0.5), ids, column, 2, context_length=2, batch_size=4)
    assert knowledge_items(needed, BITS, ["a", "b"]) == [
        {"key": "a", "bits": {"shape": pytest.approx(1)}, "right": ["shape"]},
        {"key": "b", "bits": {"color": pytest.approx(1)}, "right": ["color"]},
    ]


def test_a_transformer_is_measured_as_a_naive_loop_would() -> None:
    """One document at a time, one value at a time, in float64, against batches with padding."""
    from moc.model.config import ModelConfig
    from moc.model.transformer import build_model

    config = ModelConfig(vocab_size=NUM_TOKENS, num_layers=2, dim=16, mlp_dim=32, memory=None)
    model = build_model(config, seed=0).double()
    ids, column, _ = documents()
    ids[0], column[0] = [*ids[0], 16, 3], np.array([*column[0], -1, -1])  # padding elsewhere
    found = needed_bits(model, ids, column, 2, context_length=16, batch_size=100)
    for n, row in enumerate(ids):
        logits = model(torch.tensor([row])).logits_BLV[0].detach()
        for attribute in range(2):
            place = column[n].tolist().index(attribute)
            nats = -float(logits[place - 1].log_softmax(-1)[row[place]])
            assert found.bits_NA[n, attribute] == pytest.approx(nats / math.log(2), rel=1e-5)
