"""Which chapters are read: counts that a user can trust, and what they are summed up as."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from moc.callbacks.chapters import ChapterUtilisation, load_statistics
from moc.callbacks.metrics import TrainingMetrics
from moc.journal import Journal, read
from moc.model.transformer import build_model
from moc.train.module import router_figures
from tests.helpers_training import Recorder, tiny_study, train_phase

# nothing learns, so that every step can be recounted with the first weights
STILL = [f"phases.facts.optimizer.{group}.lr=0" for group in ("backbone", "memory_layers", "bank")]
STILL += ["phases.facts.tokens=768", "model.memory.output_init=normal"]


def picks(tmp_path: Path, *overrides: str) -> tuple[list[Any], Recorder]:
    _, recorder = train_phase(tiny_study(tmp_path, *STILL, *overrides), tmp_path)
    return [result["picks"] for result in recorder.results], recorder


def test_counts_equal_a_recount_sequence_by_sequence(tmp_path: Path) -> None:
    counted, recorder = picks(tmp_path)
    model = build_model(tiny_study(tmp_path, *STILL).arms["moc"].model, seed=0)
    assert len(counted) == 3
    for step, batch in zip(counted, recorder.batches, strict=True):
        expected = [[0] * 9, [0] * 9]
        for sequence in batch["tokens"].flatten(0, 1):
            with torch.no_grad():
                routing = model(sequence[None, :-1]).routing
            for layer, logits in enumerate(r.logits_BGC[0, 0].tolist() for r in routing):
                best = sorted(range(1, 9), key=lambda c, z=logits: -z[c])[:2]  # 0 is shared
                for chapter in best:
                    expected[layer][chapter] += 1
        assert step == expected


@pytest.mark.parametrize(
    "overrides",
    [("model.activation_checkpointing=true",), ("phases.facts.micro_batch=1",)],
    ids=["activation checkpointing", "eight micro-batches"],
)
def test_counts_do_not_depend_on_how_a_step_is_computed(
    tmp_path: Path, overrides: tuple[str, ...]
) -> None:
    """Recomputing a block in the backward pass must not count it twice."""
    assert picks(tmp_path)[0] == picks(tmp_path, *overrides)[0]


def test_router_losses_by_hand() -> None:
    """Two layers, three chapters, four groups of one pick each."""
    sums = [
        # picks, sums of probabilities, sum of logsumexp^2, groups
        [4, 0, 0, 2.0, 1.0, 1.0, 8.0, 4],  # collapsed: 3 * 1 * 1/2
        [1, 2, 1, 1.0, 2.0, 1.0, 1.0, 4],  # 3 * (1/4 * 1/4 + 1/2 * 1/2 + 1/4 * 1/4)
    ]
    figures = router_figures(torch.tensor(sums, dtype=torch.float64))
    assert {key: value.tolist() for key, value in figures.items() if value is not None} == {
        "picks": [[4, 0, 0], [1, 2, 1]],
        "balance_loss": [1.5, 1.125],
        "z_loss": [2.0, 0.25],
    }


@pytest.mark.parametrize("micro_batch", [4, 1])
def test_router_losses_are_those_of_the_whole_step(tmp_path: Path, micro_batch: int) -> None:
    """Not a mean over micro-batches, whose balance loss is another, and without coefficients."""
    study = tiny_study(tmp_path, *STILL, f"phases.facts.micro_batch={micro_batch}")
    journals = [Journal(tmp_path / f"{name}.jsonl") for name in ("chapters", "metrics")]
    callbacks = (TrainingMetrics(), ChapterUtilisation(journals[0]))
    _, recorder = train_phase(study, tmp_path, callbacks=callbacks)
    model = build_model(study.arms["moc"].model, seed=0)
    for step, (result, batch) in enumerate(
        zip(recorder.results, recorder.batches, strict=True), start=1
    ):
        tokens = batch["tokens"].flatten(0, 1)
        with torch.no_grad():
            routing = model(tokens[:, :-1]).routing
        lines = [line for line in read(journals[0].path) if line["step"] == step]
        balance, z = [], []
        for layer in routing:
            probs = layer.probs_BGC[:, 0].double().tolist()
            index = layer.index_BGN[:, 0, 1:].tolist()  # 0 is shared
            products = [
                sum(c in row for row in index) / 8 * sum(row[c] for row in probs) / 8
                for c in range(9)
            ]
            balance.append(9 * sum(products))
            logits = layer.logits_BGC[:, 0].double().tolist()
            z.append(sum(math.log(sum(map(math.exp, row))) ** 2 for row in logits) / 8)
        for key, expected in (("balance_loss", balance), ("z_loss", z)):
            assert result[key] == pytest.approx(expected, rel=1e-5)
            assert [line[key] for line in lines] == result[key]
            (logged,) = [
                r["metrics"][f"facts/train/{key}"]
                for r in read(journals[1].path)
                if r["step"] == step
            ]
            assert logged == pytest.approx(sum(expected) / 2, rel=1e-5)


def test_an_arm_without_memory_has_no_counts(tmp_path: Path) -> None:
    study = tiny_study(tmp_path, *STILL)
    _, recorder = train_phase(study, tmp_path, arm="backbone")
    assert [result["picks"] for result in recorder.results] == [None] * 3


def test_an_arm_that_reads_every_chapter_has_no_counts(tmp_path: Path) -> None:
    assert picks(tmp_path, "model.memory.num_routed=null")[0] == [None] * 3


def test_statistics_of_even_use() -> None:
    found = load_statistics(torch.tensor([7, 7, 7, 7]))
    assert found == pytest.approx(
        {"load_max_over_mean": 1.0, "entropy": 1.0, "dead_share": 0.0, "kl_to_uniform": 0.0}
    )


def test_statistics_of_a_collapsed_router() -> None:
    found = load_statistics(torch.tensor([0, 12, 0, 0]))
    assert found["load_max_over_mean"] == pytest.approx(4)
    assert found["entropy"] == pytest.approx(0, abs=1e-12)
    assert found["dead_share"] == 0.75
    assert found["kl_to_uniform"] == pytest.approx(math.log(4))


def test_statistics_of_uneven_use() -> None:
    """Shares 1/2, 1/4, 1/4, 0: 1.5 bits of entropy out of 2."""
    found = load_statistics(torch.tensor([4, 2, 2, 0]))
    assert found["load_max_over_mean"] == pytest.approx(2)
    assert found["entropy"] == pytest.approx(0.75)
    assert found["dead_share"] == 0.25
    assert found["kl_to_uniform"] == pytest.approx(0.5 * math.log(2))
