"""Controls of a bank that is spread over two ranks: what one process sees, and nothing stays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from evals.measures.controls import knocked_out, swapped_bank
from evals.scoring.observing import only_observing
from moc.model.decode.generate import generate
from moc.model.transformer import Transformer
from tests.conftest import Run
from tests.integration.test_two_ranks import arguments, log_of, result_of
from tests.support.child_tasks import PROMPTS
from tests.support.helpers_training import tiny_study
from tests.support.ranks import launched_by_torchrun

OVERRIDES = [
    "phases.facts.tokens=512",
    "phases.facts.micro_batch=2",
    "model.memory.output_init=normal",  # else a fresh memory layer reads nothing
    "trainer.devices=2",
    "trainer.strategy=fsdp",
]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory, in_child: Run) -> list[list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("fsdp")
    options = arguments(folder, OVERRIDES)
    codes = in_child("controls", log=folder / "log", env=launched_by_torchrun(2), **options)
    assert codes == [0, 0], log_of(folder)
    return [result_of(folder, rank) for rank in (0, 1)]  # type: ignore[misc]


def test_no_bit_of_the_shards_stays_changed(ranks: list[list[dict[str, Any]]]) -> None:
    for seen in ranks[0]:
        assert seen["sharded"]
        for name, tensor in seen["before"].items():
            assert torch.equal(tensor, seen["after"][name]), name
        assert torch.equal(seen["logits"], seen["logits after"])
    moved = [ranks[0][i]["before"]["banks.0.rows"] for i in (0, 1)]
    assert not torch.equal(*moved)  # training goes on from the bank, not from a control's


def test_every_rank_scores_what_one_process_would(
    ranks: list[list[dict[str, Any]]], tmp_path: Path
) -> None:
    config = tiny_study(tmp_path, *OVERRIDES).arms["moc"].model
    for moment in (0, 1):
        seen = ranks[0][moment]
        one = Transformer(config)
        one.load_state_dict(seen["before"])
        other = {name: tensor.flip(0) for name, tensor in seen["before"].items()}
        controls = {
            "bank": knocked_out(one, None),
            "chapters": knocked_out(one, [[0, 7]]),
            "swap": swapped_bank(one, other),
        }
        for name, control in controls.items():
            with control, only_observing(one):
                expected = one(torch.arange(64).reshape(1, 64) % 32).logits_BLV
            assert (seen[name] - seen["logits"]).abs().max() > 1e-4, name
            for rank in ranks:
                torch.testing.assert_close(rank[moment][name], expected, rtol=1e-5, atol=1e-6)
        expected = generate(one, PROMPTS, max_new_tokens=8)
        assert [rank[moment]["written"] for rank in ranks] == [expected, expected]
