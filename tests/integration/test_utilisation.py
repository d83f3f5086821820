"""Which chapters are read: counts that a user can trust, and what they are summed up as."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from moc.callbacks.memory_use import MemoryUse, has_collapsed, load_statistics
from moc.callbacks.metrics import TrainingMetrics
from moc.model.transformer import build_model
from moc.store.journal import Journal, read
from moc.train.addresses import address_figures
from tests.support.helpers_training import Recorder, tiny_study, train_phase

# nothing learns, so that every step can be recounted with the first weights
STILL = [f"phases.facts.optimizer.{group}.lr=0" for group in ("backbone", "memory_layers", "bank")]
STILL += ["phases.facts.tokens=768", "model.memory.output_init=normal"]
SCOPES = {"sequence": 1, "segment": 2, "token": 32}  # routing groups in 32 tokens


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the tests that share a tokenizer and its caches train."""
    return tmp_path_factory.mktemp("shared")


def picks(folder: Path, *overrides: str) -> tuple[list[Any], Recorder]:
    _, recorder = train_phase(tiny_study(folder, *STILL, *overrides), folder)
    return [result["use"] for result in recorder.results], recorder


@pytest.mark.parametrize("scope", SCOPES)
def test_counts_equal_a_recount_group_by_group(folder: Path, scope: str) -> None:
    scoped = f"model.memory.chapters.router.scope={scope}"
    counted, recorder = picks(folder, scoped)
    model = build_model(tiny_study(folder, *STILL, scoped).arms["moc"].model, seed=0)
    assert len(counted) == 3
    for step, batch in zip(counted, recorder.batches, strict=True):
        expected = [[0] * 9, [0] * 9]
        for sequence in batch["tokens"].flatten(0, 1):
            with torch.no_grad():
                routing = model(sequence[None, :-1]).addresses
            for layer, groups in enumerate(r.logits_BGC[0].tolist() for r in routing):
                assert len(groups) == SCOPES[scope]
                for logits in groups:
                    best = sorted(range(1, 9), key=lambda c, z=logits: -z[c])[:2]  # 0 is shared
                    for chapter in best:
                        expected[layer][chapter] += 1
        assert step == expected


@pytest.mark.parametrize("scope", SCOPES)
def test_counts_do_not_depend_on_how_a_step_is_computed(folder: Path, scope: str) -> None:
    """Recomputing a block in the backward pass must not count it twice, nor may a micro-batch be
    forgotten: 1 of 8 sequences, 2 of 4 with recomputation, 8 of 1."""
    ways = [
        ("phases.facts.micro_batch=8",),
        ("model.activation_checkpointing=true",),
        ("phases.facts.micro_batch=1",),
    ]
    whole, recomputed, cut = (
        picks(folder, f"model.memory.chapters.router.scope={scope}", *way)[0] for way in ways
    )
    assert whole == recomputed == cut
    assert all(sum(layer) == 8 * SCOPES[scope] * 2 for step in whole for layer in step)


def test_router_losses_by_hand() -> None:
    """Two layers, three chapters, four groups of one pick each."""
    sums = [
        # picks, sums of probabilities, sum of logsumexp^2, groups
        [4, 0, 0, 2.0, 1.0, 1.0, 8.0, 4],  # collapsed: 3 * 1 * 1/2
        [1, 2, 1, 1.0, 2.0, 1.0, 1.0, 4],  # 3 * (1/4 * 1/4 + 1/2 * 1/2 + 1/4 * 1/4)
    ]
    figures = address_figures(torch.tensor(sums, dtype=torch.float64), num_rows=3)
    assert {key: value.tolist() for key, value in figures._asdict().items()} == {
        "use": [[4, 0, 0], [1, 2, 1]],
        "balance_loss": [1.5, 1.125],
        "z_loss": [2.0, 0.25],
    }


@pytest.mark.parametrize("micro_batch", [4, 1])
def test_address_figures_are_those_of_the_whole_step(
    folder: Path, tmp_path: Path, micro_batch: int
) -> None:
    """Not a mean over micro-batches, whose balance loss is another, and without coefficients."""
    study = tiny_study(folder, *STILL, f"phases.facts.micro_batch={micro_batch}")
    journals = [Journal(tmp_path / f"{name}.jsonl") for name in ("chapters", "metrics")]
    callbacks = (TrainingMetrics(), MemoryUse(journals[0]))
    _, recorder = train_phase(study, tmp_path, callbacks=callbacks)
    model = build_model(study.arms["moc"].model, seed=0)
    for step, (result, batch) in enumerate(
        zip(recorder.results, recorder.batches, strict=True), start=1
    ):
        tokens = batch["tokens"].flatten(0, 1)
        with torch.no_grad():
            routing = model(tokens[:, :-1]).addresses
        lines = [line for line in read(journals[0].path) if line["step"] == step]
        balance, z = [], []
        for layer in routing:
            probs = layer.probs_BGC.flatten(0, 1).double().tolist()
            index = layer.index_BGN[..., 1:].flatten(0, 1).tolist()  # 0 is shared
            assert len(index) == 16  # two segments in each of eight sequences
            products = [
                sum(c in row for row in index) / 16 * sum(row[c] for row in probs) / 16
                for c in range(9)
            ]
            balance.append(9 * sum(products))
            logits = layer.logits_BGC.flatten(0, 1).double().tolist()
            z.append(sum(math.log(sum(map(math.exp, row))) ** 2 for row in logits) / 16)
        for key, expected in (("balance_loss", balance), ("z_loss", z)):
            assert result[key] == pytest.approx(expected, rel=1e-5)
            assert [line[key] for line in lines] == result[key]
            (logged,) = [
                r["metrics"][f"facts/train/{key}"]
                for r in read(journals[1].path)
                if r["step"] == step
            ]
            assert logged == pytest.approx(sum(expected) / 2, rel=1e-5)
        covered = [sum(n > 0 for n in picks[1:]) / 8 for picks in result["use"]]
        assert [(line["coverage"], line["coverage_tokens"]) for line in lines] == [
            (share, 256) for share in covered
        ]
        (record,) = [r for r in read(journals[1].path) if r["step"] == step]
        assert record["metrics"]["facts/memory/coverage"] == sum(covered) / 2


def test_an_arm_without_memory_has_no_counts(folder: Path) -> None:
    study = tiny_study(folder, *STILL)
    _, recorder = train_phase(study, folder, arm="backbone")
    assert [result["use"] for result in recorder.results] == [None] * 3


def test_an_arm_that_reads_every_chapter_has_no_counts(folder: Path) -> None:
    assert picks(folder, "model.memory.chapters.num_routed=null")[0] == [None] * 3


def test_statistics_of_even_use() -> None:
    found = load_statistics(torch.tensor([7, 7, 7, 7]))
    assert found == pytest.approx(
        {
            "load_max_over_mean": 1.0,
            "entropy": 1.0,
            "effective_rows": 4.0,
            "dead_share": 0.0,
            "kl_to_uniform": 0.0,
        }
    )


def test_statistics_of_a_collapsed_router() -> None:
    found = load_statistics(torch.tensor([0, 12, 0, 0]))
    assert found["load_max_over_mean"] == pytest.approx(4)
    assert found["entropy"] == pytest.approx(0, abs=1e-12)
    assert found["effective_rows"] == pytest.approx(1)
    assert found["dead_share"] == 0.75
    assert found["kl_to_uniform"] == pytest.approx(math.log(4))


def test_statistics_of_uneven_use() -> None:
    """Shares 1/2, 1/4, 1/4, 0: 1.5 bits of entropy out of 2."""
    found = load_statistics(torch.tensor([4, 2, 2, 0]))
    assert found["load_max_over_mean"] == pytest.approx(2)
    assert found["entropy"] == pytest.approx(0.75)
    assert found["dead_share"] == 0.25
    assert found["kl_to_uniform"] == pytest.approx(0.5 * math.log(2))


@pytest.mark.parametrize(
    ("load", "collapsed"),
    [
        ([10] * 8, False),
        ([80, 0, 0, 0, 0, 0, 0, 0], True),
        ([79, 0, 0, 0, 0, 0, 0, 0], False),  # an even router would not have got to ten each
        ([900, 5, 5, 5, 5, 5, 5, 5], True),  # all are used, one of them for nearly everything
        ([100, 100, 100, 0, 0, 0, 0, 0], True),  # entropy log 3 / log 8, which is above a half
        ([100, 100, 100, 100, 0, 0, 0, 0], False),
    ],
)
def test_when_a_layer_has_collapsed(load: list[int], collapsed: bool) -> None:
    assert has_collapsed(torch.tensor(load), load_statistics(torch.tensor(load))) == collapsed


class MadeUpPicks(L.Callback):
    """Puts picks of its own in the place of the router's."""

    def __init__(self, picks: list[list[list[int]]]) -> None:
        self.picks = iter(picks)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *_: Any) -> None:
        outputs["use"] = torch.tensor(next(self.picks))


def test_an_alarm_is_raised_once_and_again_after_recovery(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A line at every record would drown the log; one line ever would hide a second collapse."""
    even, one = [0, *[1000] * 8], [0, 40, *[0] * 7]
    picks = [[one, even], [one, even], [one, even], [even, even], [[0, 10**6, *[0] * 7], even]]
    callbacks = (
        MadeUpPicks(picks),
        TrainingMetrics(),
        MemoryUse(Journal(tmp_path / "memory_use.jsonl")),
    )
    study = tiny_study(folder, "phases.facts.tokens=1280")
    train_phase(study, tmp_path, callbacks=callbacks)
    lines = [line for line in capsys.readouterr().out.splitlines() if "collapsed" in line]
    assert len(lines) == 2
    assert "phase facts, step 2, layer 0: entropy 0.00" in lines[0]
    assert "88% of the chapters never picked in the last 2 steps" in lines[0]
    assert "the busiest 8.0 times" in lines[0]
    assert "phase facts, step 5, layer 0" in lines[1]
    for remedy in ("balance_coefficient", "bias_rate", "revive_every_steps"):
        assert all(remedy in line for line in lines)
    counts = [
        r["metrics"]["facts/memory/collapsed_layers"] for r in read(tmp_path / "metrics.jsonl")
    ]
    assert counts == [0, 1, 1, 0, 1]
