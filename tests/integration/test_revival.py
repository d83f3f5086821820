"""Chapters that nobody reads start again as copies of ones that are read.

That a killed run revives the same chapters in the same way is in tests/faults.
"""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch

import moc.train.step
from moc.callbacks.revival import NOISE, Revival, draw_sources, restart
from moc.config.schema import StudyConfig
from moc.data.tokenizer import build_tokenizer
from moc.model.config import ModelConfig, RouterConfig
from moc.model.transformer import Transformer, build_model
from moc.store.journal import Journal, Record, read
from moc.train.checkpoints import load_training_state
from tests.conftest import Run
from tests.integration.test_two_ranks import log_of
from tests.support.helpers_training import Recorder, tiny_study, train_phase
from tests.support.ranks import launched_by_torchrun
from tests.support.small_models import chapters
from tests.support.spoiling import nan_in_second_step, spoiled

# sixteen picks a step among 32 chapters: many stay unread for two steps
OPTIONS = [
    "phases.facts.tokens=1536",  # six steps
    "phases.facts.revive_every_steps=2",
    "model.memory.chapters.num_chapters=33",
    "model.memory.output_init=normal",
    "model.memory.chapters.router.scope=sequence",
    "model.memory.chapters.router.bias_rate=0.01",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the tests share a tokenizer and its caches."""
    return tmp_path_factory.mktemp("shared")


def train(
    study: StudyConfig, result: Path, **options: Any
) -> tuple[Recorder, list[Record], dict[int, float]]:
    """What was seen, the records of revivals, and ``memory/revived`` by step."""
    callback = Revival(2, seed=0, revivals=Journal(result / "revivals.jsonl"))
    recorder = Recorder(weights=True)
    train_phase(study, result, callbacks=(callback,), recorder=recorder, **options)
    counts = {
        record["step"]: record["metrics"]["facts/memory/revived"]
        for record in read(result / "metrics.jsonl")
        if "facts/memory/revived" in record["metrics"]
    }
    return recorder, read(result / "revivals.jsonl"), counts


def test_exactly_the_chapters_unread_since_the_last_revival_are_restarted(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """At steps 2 and 4; what is restarted at step 6, the last, would be scored untrained."""
    recorder, records, counts = train(tiny_study(folder, *OPTIONS), tmp_path)
    assert [record["step"] for record in records] == [2, 4]
    for record in records:
        steps = [recorder.results[record["step"] - i]["use"] for i in (1, 2)]
        total = [sum(layer[c] for step in steps for layer in step) for c in range(33)]
        pairs = {int(dead): source for dead, source in record["revived"].items()}
        assert list(pairs) == [c for c in range(1, 33) if not total[c]] and pairs
        assert all(total[source] for source in pairs.values())
        assert counts[record["step"]] == len(pairs)
    assert list(counts) == [2, 4]
    lines = [line for line in capsys.readouterr().out.splitlines() if "restarted" in line]
    expected = [f"step {r['step']}: {len(r['revived'])} chapters of bank 0" for r in records]
    assert all(text in line for text, line in zip(expected, lines, strict=True))


def test_a_chapter_read_by_any_layer_is_left_alone_and_the_copies_are_close(
    folder: Path, tmp_path: Path
) -> None:
    """Weights after step 2, against those of a run without revival."""
    study = tiny_study(folder, *OPTIONS)
    recorder, records, _ = train(study, tmp_path)
    plain = Recorder(weights=True)
    train_phase(study, tmp_path, recorder=plain)
    revived = {int(dead): source for dead, source in records[0]["revived"].items()}
    for name, before in plain.weights[1].items():
        after = recorder.weights[1][name]
        if not (name.startswith("banks.") or ".router." in name):
            assert torch.equal(after, before), name
            continue
        for c in range(33):
            if c not in revived:
                assert torch.equal(after[c], before[c]), f"{name} of chapter {c}"
                continue
            source = before[revived[c]]
            if name.endswith("bias"):
                assert torch.equal(after[c], source), f"{name} of chapter {c}"
            else:
                ratio = (after[c] - source).std() / source.std()
                assert 0.5 * NOISE < ratio < 1.5 * NOISE, f"{name} of chapter {c}: {ratio}"


def small_model() -> tuple[Transformer, torch.optim.AdamW]:
    """Two layers with a bank each, after one AdamW step on made-up gradients."""
    config = ModelConfig(
        vocab_size=16,
        num_layers=2,
        dim=8,
        num_heads=1,
        num_kv_heads=1,
        mlp_dim=8,
        memory=chapters(
            num_chapters=5,
            num_routed=1,
            chapter_tokens=2,
            layers="all",
            layers_per_bank=1,
            router=RouterConfig(bias_rate=0.1),
        ),
    )
    model = build_model(config)
    for index, parameter in enumerate(model.parameters()):
        parameter.grad = torch.full_like(parameter, 0.1 * (index + 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    optimizer.step()
    optimizer.zero_grad()
    return model, optimizer


def test_moments_of_restarted_rows_are_zero_and_all_others_stay() -> None:
    """Old momentum would pull a copy away from what it was copied from. The other bank, and the
    router that reads it, are none of this one's business."""
    model, optimizer = small_model()
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    moments = {name: deepcopy(optimizer.state[p]) for name, p in model.named_parameters()}
    dead, source = torch.tensor([1, 4]), torch.tensor([2, 2])
    restart(model, optimizer, 1, dead, source, torch.Generator().manual_seed(0))
    own = ("banks.1.", "blocks.1.memory.address.router.linear.")
    for name, parameter in model.named_parameters():
        rows = [1, 4] if name.startswith(own) else []
        kept = [row for row in range(len(parameter)) if row not in rows]
        assert torch.equal(parameter[kept], weights[name][kept]), name
        for key in ("exp_avg", "exp_avg_sq"):
            moment = optimizer.state[parameter][key]
            assert not moment[rows].any(), name
            assert torch.equal(moment[kept], moments[name][key][kept]) and moment[kept].all(), name
        if rows and parameter.ndim > 1:
            assert not torch.equal(parameter[1], parameter[4]), "twins of one source are parted"


def test_before_the_first_update_there_are_no_moments_to_clear() -> None:
    model, _ = small_model()
    optimizer = torch.optim.AdamW(model.parameters())
    restart(model, optimizer, 0, torch.tensor([1]), torch.tensor([2]), torch.Generator())
    assert not optimizer.state


def test_sources_are_drawn_in_proportion_to_their_picks() -> None:
    picks = torch.zeros(4003, dtype=torch.int64)
    picks[1], picks[2] = 30, 10  # 0 is shared, the other 4000 are dead
    dead, source = draw_sources(picks, 1, torch.Generator().manual_seed(0))
    assert dead.tolist() == list(range(3, 4003))
    assert set(source.tolist()) == {1, 2}
    assert (source == 1).double().mean().item() == pytest.approx(0.75, abs=0.03)  # 4 sigma


@pytest.mark.parametrize("picks", [[0, 3, 1, 2], [0, 0, 0, 0]])
def test_nothing_is_restarted_when_all_are_read_or_none(picks: list[int]) -> None:
    dead, source = draw_sources(torch.tensor(picks), 1, torch.Generator())
    assert not len(dead) and not len(source)


def test_draws_neither_use_nor_move_the_global_random_state() -> None:
    """Otherwise a resumed run, or another rank, would revive otherwise."""
    found = []
    for seed in (1, 2):
        model, optimizer = small_model()
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        generator = torch.Generator().manual_seed(0)
        dead, source = draw_sources(torch.tensor([0, 5, 0, 5, 0]), 1, generator)
        restart(model, optimizer, 0, dead, source, generator)
        assert torch.equal(torch.get_rng_state(), before)
        found.append(model.state_dict())
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


@pytest.mark.parametrize("group", ["bank", "memory_layers"])
def test_a_frozen_group_is_not_revived_and_it_is_said_once(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], group: str
) -> None:
    study = tiny_study(folder, *OPTIONS, f"phases.facts.optimizer.{group}.freeze=true")
    recorder, records, counts = train(study, tmp_path)
    assert not records and not counts
    start = build_model(study.arms["moc"].model, seed=0).state_dict()
    frozen = "banks.0.rows" if group == "bank" else "blocks.0.memory.address.router.linear.weight"
    assert torch.equal(recorder.weights[-1][frozen], start[frozen])
    assert (
        capsys.readouterr().out.count(f"phase facts: no chapter is revived: it freezes {group}")
        == 1
    )


def test_a_skipped_step_revives_nothing_and_its_picks_do_not_count(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights stay those before the bad step, and NaN chooses no chapters."""
    monkeypatch.setattr(moc.train.step, "predict", spoiled(nan_in_second_step))
    study = tiny_study(folder, *OPTIONS, "model.memory.chapters.num_chapters=129")
    recorder, records, counts = train(study, tmp_path)
    for name, weight in recorder.weights[0].items():
        assert torch.equal(recorder.weights[1][name], weight), name
    assert list(counts) == [4] and [record["step"] for record in records] == [4]
    steps = [recorder.results[i]["use"] for i in (0, 2, 3)]
    total = [sum(layer[c] for step in steps for layer in step) for c in range(129)]
    assert [int(c) for c in records[0]["revived"]] == [c for c in range(1, 129) if not total[c]]


def test_an_arm_without_a_router_has_nothing_to_revive(folder: Path, tmp_path: Path) -> None:
    """The phase is the study's, and its dense arms go through it too."""
    _, records, counts = train(tiny_study(folder, *OPTIONS), tmp_path, arm="backbone")
    assert not records and not counts


def in_processes(
    folder: Path, in_child: Run, env: list[dict[str, str]], *overrides: str
) -> dict[str, Any]:
    build_tokenizer(tiny_study(folder))
    options = {"overrides": [*OPTIONS, *overrides], "checkpoint_at": 4}
    arguments = {"folder": str(folder), "result": str(folder), **options}
    codes = in_child("train", log=folder / "log", env=env, **arguments)
    assert not any(codes), log_of(folder)
    return {
        "revivals": [(r["step"], r["revived"]) for r in read(folder / "revivals.jsonl")],
        "moments": load_training_state(folder / "facts-00000004")["optimizer"]["state"],
        **torch.load(folder / "0.pt", weights_only=True),
    }


@pytest.fixture(scope="module", params=["dense", "lazy"])
def updates(request: pytest.FixtureRequest) -> list[str]:
    return ["phases.facts.optimizer.lazy_bank=true"] if request.param == "lazy" else []


@pytest.fixture(scope="module")
def one(
    updates: list[str], tmp_path_factory: pytest.TempPathFactory, in_child: Run
) -> dict[str, Any]:
    return in_processes(tmp_path_factory.mktemp("one"), in_child, [{}], *updates)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_ranks_revive_what_one_process_does(
    tmp_path: Path, in_child: Run, one: dict[str, Any], updates: list[str], strategy: str
) -> None:
    """Also with the bank, the routers and the moments of both in shards, of unequal size."""
    overrides = [
        *updates,
        "phases.facts.micro_batch=2",
        "trainer.devices=2",
        f"trainer.strategy={strategy}",
    ]
    two = in_processes(tmp_path, in_child, launched_by_torchrun(2), *overrides)
    assert two["sharded"] == (strategy == "fsdp")
    assert two["revivals"] == one["revivals"]
    step, revived = one["revivals"][-1]
    assert step == 4 and revived
    for name, weight in one["weights"].items():
        assert (two["weights"][name] - weight).abs().max() < 2e-4, name
    routers = [f"blocks.{layer}.memory.address.router.linear" for layer in (0, 1)]
    names = [f"{router}.{kind}" for router in routers for kind in ("weight", "bias")]
    for name in ["banks.0.rows", *names]:
        for key in ("exp_avg", "exp_avg_sq"):
            found, expected = (result["moments"][name][key] for result in (two, one))
            assert not found[[int(c) for c in revived]].any() and found.any(), name
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)
    step_C, expected_C = (result["moments"]["banks.0.rows"]["step"] for result in (two, one))
    assert torch.equal(step_C, expected_C)
    if updates:
        assert not step_C[[int(c) for c in revived]].any() and step_C[0] == 4  # shared, read always
