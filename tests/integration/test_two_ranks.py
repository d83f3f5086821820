"""Two CPU processes over gloo train what one process trains."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from moc.data.tokenizer import build_tokenizer
from moc.evaluate.evaluator import BoundaryEvaluator
from moc.model.files import load_model
from moc.model.transformer import Transformer, build_model, parameter_group
from moc.store.journal import read
from moc.train.checkpoints import load_training_state
from tests.conftest import Run
from tests.support.helpers_training import tiny_study, train_phase, write_tiny_study
from tests.support.ranks import launched_by_torchrun

# Ten steps of 8 sequences. Two ranks have half the micro-batch, so that the sequences which share
# a balance loss are the same; two micro-batches a step, so that one of them does not communicate.
COMMON = [
    "phases.facts.tokens=2560",
    "phases.facts.loss_on=assistant",  # uneven masks: questions count differently from prose
    "phases.facts.mixture={skills: 1.0, people: 1.0}",
    "model.memory.output_init=normal",
    "model.memory.chapters.router.bias_rate=0.01",  # beside the balance loss
]
ONE = [*COMMON, "phases.facts.micro_batch=4"]
TWO = [*COMMON, "phases.facts.micro_batch=2", "trainer.devices=2"]


LAZY = ["phases.facts.optimizer.lazy_bank=true"]


@pytest.fixture(scope="module", params=["dense", "lazy"])
def updates(request: pytest.FixtureRequest) -> list[str]:
    """How banks are updated: as everything, or only the chapters that a step has read."""
    return LAZY if request.param == "lazy" else []


@pytest.fixture(scope="module")
def one(
    updates: list[str], tmp_path_factory: pytest.TempPathFactory, in_child: Run
) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("one")
    options = arguments(folder, [*ONE, *updates]) | {"checkpoint_at": 5}
    assert in_child("train", log=folder / "log", **options) == [0], log_of(folder)
    return {"folder": folder, **result_of(folder, 0)}


@pytest.fixture(scope="module", params=["ddp", "fsdp"])
def two(
    request: pytest.FixtureRequest,
    updates: list[str],
    tmp_path_factory: pytest.TempPathFactory,
    in_child: Run,
) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp(request.param)
    overrides = [*TWO, *updates, f"trainer.strategy={request.param}"]
    options = arguments(folder, overrides) | {"checkpoint_at": 5}
    codes = in_child("train", log=folder / "log", env=launched_by_torchrun(2), **options)
    assert codes == [0, 0], log_of(folder)
    first, second = (result_of(folder, rank) for rank in (0, 1))
    return {"strategy": request.param, "folder": folder, "ranks": (first, second), **first}


def arguments(folder: Path, overrides: list[str]) -> dict[str, Any]:
    build_tokenizer(tiny_study(folder, *overrides))  # not at the same time by two children
    return {"folder": str(folder), "overrides": overrides, "result": str(folder)}


def result_of(folder: Path, rank: int) -> dict[str, Any]:
    return torch.load(folder / f"{rank}.pt", weights_only=True)


def log_of(folder: Path) -> str:
    return "\n".join(path.read_text()[-3000:] for path in sorted(folder.glob("log*")))


def column(result: dict[str, Any], key: str) -> list[float]:
    return [step[key] for step in result["results"]]


def test_losses_and_norms_over_ten_steps(one: dict[str, Any], two: dict[str, Any]) -> None:
    assert len(one["results"]) == 10
    assert column(one, "loss")[-1] < column(one, "loss")[0] - 0.1  # it learns something
    for key in ("loss", "balance_loss", "z_loss"):
        found, expected = (torch.tensor(column(result, key)) for result in (two, one))
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=0, msg=key)
    assert column(two, "grad_norm") == pytest.approx(column(one, "grad_norm"), rel=1e-5)


def test_both_ranks_report_the_same_figures(two: dict[str, Any]) -> None:
    first, second = two["ranks"]
    assert first["results"] == second["results"]


def test_weights_bank_and_router_included(one: dict[str, Any], two: dict[str, Any]) -> None:
    assert two["sharded"] == (two["strategy"] == "fsdp")
    assert one["weights"].keys() == two["weights"].keys()
    for name, weight in one["weights"].items():
        difference = (two["weights"][name] - weight).abs().max().item()
        # 10 Adam steps of 1e-3 move a weight by up to 1e-2
        assert difference < 1e-5, f"{name}: {difference}"
        assert two["weights"][name].shape == weight.shape


def test_sharding_spreads_the_bank_by_chapter(two: dict[str, Any]) -> None:
    sharded = two["strategy"] == "fsdp"
    found = [rank["bank rows here"] for rank in two["ranks"]]
    assert found == ([[5], [4]] if sharded else [[9], [9]])


def test_only_chapters_that_are_read_travel_and_each_once(two: dict[str, Any]) -> None:
    first, second = (rank["fetches"] for rank in two["ranks"])
    if two["strategy"] == "ddp":
        assert not first and not second
        return
    owner = [0] * 5 + [1] * 4
    layers, micro_batches = 2, 2
    assert len(first) == len(second) == 10 * layers * micro_batches
    for (asked, sent), (asked_there, sent_there) in zip(first, second, strict=True):
        assert asked == sorted(set(asked)) and asked_there == sorted(set(asked_there))
        assert sent == sum(owner[chapter] == 0 for chapter in asked_there)
        assert sent_there == sum(owner[chapter] == 1 for chapter in asked)
    for step, picks in enumerate(column(two, "use")):
        for layer in range(layers):
            calls = [step * 4 + micro * layers + layer for micro in range(micro_batches)]
            asked = {c for rank in (first, second) for call in calls for c in rank[call][0]}
            assert asked == {0} | {c for c, count in enumerate(picks[layer]) if count}


def test_moments_of_the_bank(one: dict[str, Any], two: dict[str, Any], updates: list[str]) -> None:
    """Gathered from the shards, and of a lazy bank with the time of every row."""
    found, expected = (
        load_training_state(result["folder"] / "facts-00000005")["optimizer"]["state"]
        for result in (two, one)
    )
    moments, expected_moments = (state["banks.0.rows"] for state in (found, expected))
    for key in ("exp_avg", "exp_avg_sq"):
        torch.testing.assert_close(moments[key], expected_moments[key], rtol=1e-4, atol=1e-9)
    if not updates:
        assert moments["step"] == 5
        return
    picked = torch.tensor(column(one, "use")[:5]).sum(1) > 0  # (step, C), in any layer
    picked[:, 0] = True  # shared
    assert moments["step"].tolist() == picked.sum(0).tolist()


def test_the_selection_bias_is_that_of_one_process(
    one: dict[str, Any], two: dict[str, Any]
) -> None:
    """A buffer: no gradient, no sharding, and every rank moves its own."""
    names = [f"blocks.{layer}.memory.address.router.selection_bias" for layer in (0, 1)]
    half_way, expected_half_way = (
        load_training_state(result["folder"] / "facts-00000005")["model"] for result in (two, one)
    )
    for name in names:
        assert one["weights"][name].any()
        for rank in two["ranks"]:
            assert torch.equal(rank["buffers"][name], one["weights"][name])
        assert torch.equal(half_way[name], expected_half_way[name])


def test_the_ranks_share_the_same_samples_in_the_same_order(
    one: dict[str, Any], two: dict[str, Any]
) -> None:
    first, second = (rank["samples"] for rank in two["ranks"])
    for alone, left, right in zip(one["samples"], first, second, strict=True):
        assert torch.equal(alone, torch.cat((left, right), dim=1))  # (micro-batch, sequence, token)


def test_picks_are_counted_over_all_ranks(one: dict[str, Any], two: dict[str, Any]) -> None:
    assert column(two, "use") == column(one, "use")
    for step in column(two, "use"):
        # sequences x segments x K, in both layers
        assert [sum(layer) for layer in step] == [8 * 2 * 2, 8 * 2 * 2]


@pytest.mark.parametrize(
    ("scope", "groups", "strategy"), [("sequence", 1, "fsdp"), ("token", 32, "ddp")]
)
def test_picks_of_the_other_scopes(
    tmp_path: Path, in_child: Run, scope: str, groups: int, strategy: str
) -> None:
    """Segments are what the other tests here route by. Only the selection bias moves: of so many
    tokens one would soon sit where rounding decides."""
    still = ("backbone", "memory_layers", "bank")
    extra = [f"phases.facts.optimizer.{group}.lr=0" for group in still]
    extra += ["phases.facts.tokens=768", f"model.memory.chapters.router.scope={scope}"]
    extra += ["model.activation_checkpointing=true"]  # a sharded bank is fetched from once more
    options = arguments(tmp_path, [*TWO, *extra, f"trainer.strategy={strategy}"])
    codes = in_child("train", log=tmp_path / "log", env=launched_by_torchrun(2), **options)
    assert codes == [0, 0], log_of(tmp_path)
    _, alone = train_phase(tiny_study(tmp_path, *ONE, *extra), tmp_path)
    expected = [result["use"] for result in alone.results]
    for rank in (0, 1):
        result = result_of(tmp_path, rank)
        assert column(result, "use") == expected
        for key, close in (("loss", 1e-6), ("grad_norm", 1e-5)):
            assert column(result, key) == pytest.approx([r[key] for r in alone.results], rel=close)
    assert {sum(layer) for step in expected for layer in step} == {8 * groups * 2}


def test_groups_do_not_depend_on_sharding(one: dict[str, Any], two: dict[str, Any]) -> None:
    assert two["groups"] == one["groups"]
    names = [name for group in two["groups"] for name in group["params"]]
    assert {parameter_group(name) for name in names} == {"backbone", "memory_layers", "bank"}


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_lazy_bank_keeps_what_nobody_read(tmp_path: Path, in_child: Run, strategy: str) -> None:
    extra = [*LAZY, "phases.facts.tokens=768", "model.memory.chapters.num_chapters=129"]
    overrides = [*TWO, *extra, f"trainer.strategy={strategy}"]
    options = arguments(tmp_path, overrides)
    codes = in_child("train", log=tmp_path / "log", env=launched_by_torchrun(2), **options)
    assert codes == [0, 0], log_of(tmp_path)
    result = result_of(tmp_path, 0)
    read_C = torch.tensor(column(result, "use")).sum((0, 1)) > 0
    read_C[0] = True
    assert 10 < read_C.sum() < 120
    before = build_model(tiny_study(tmp_path, *overrides).arms["moc"].model, seed=0)
    changed_C = (result["weights"]["banks.0.rows"] != before.bank_rows()[0]).any(2).any(1)
    assert torch.equal(changed_C, read_C)


def test_a_checkpoint_of_two_ranks_goes_on_in_one_process(
    one: dict[str, Any], two: dict[str, Any], updates: list[str], tmp_path: Path
) -> None:
    state = load_training_state(two["folder"] / "facts-00000005")
    assert state["step"] == 5
    study = tiny_study(tmp_path, *ONE, *updates)
    model = Transformer(study.arms["moc"].model)
    model.load_state_dict(state["model"])
    _, recorder = train_phase(
        study, tmp_path, model=model, start_step=5, optimizer_state=state["optimizer"]
    )
    assert recorder.losses() == pytest.approx(column(one, "loss")[5:], rel=1e-6)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_checkpoint_of_one_process_goes_on_on_two_ranks(
    one: dict[str, Any], updates: list[str], tmp_path: Path, in_child: Run, strategy: str
) -> None:
    overrides = [*TWO, *updates, f"trainer.strategy={strategy}"]
    options = arguments(tmp_path, overrides) | {"resume": str(one["folder"] / "facts-00000005")}
    codes = in_child("train", log=tmp_path / "log", env=launched_by_torchrun(2), **options)
    assert codes == [0, 0], log_of(tmp_path)
    result = result_of(tmp_path, 1)
    assert column(result, "loss") == pytest.approx(column(one, "loss")[5:], rel=1e-6)
    for name, weight in one["weights"].items():
        torch.testing.assert_close(result["weights"][name], weight, rtol=0, atol=1e-5, msg=name)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_nan_on_one_rank_is_skipped_on_both(
    tmp_path: Path, in_child: Run, updates: list[str], strategy: str
) -> None:
    """Otherwise the ranks would hold different weights from there on, without a word."""
    overrides = [*TWO, *updates, "phases.facts.tokens=768", f"trainer.strategy={strategy}"]
    options = arguments(tmp_path, overrides) | {"nan_on_rank": 1}
    codes = in_child("train", log=tmp_path / "log", env=launched_by_torchrun(2), **options)
    assert codes == [0, 0], log_of(tmp_path)
    first, second = (result_of(tmp_path, rank) for rank in (0, 1))
    for rank in (first, second):
        assert column(rank, "skipped") == [False, True, False]
    for name, weight in first["weights"].items():
        assert torch.isfinite(weight).all() and torch.equal(weight, second["weights"][name]), name
    assert "update skipped" in (tmp_path / "log").read_text()


def test_a_study_begun_on_two_ranks_is_finished_by_one(tmp_path: Path, in_child: Run) -> None:
    """Evaluated while sharded, stopped by a signal to both ranks, resumed without sharding."""
    argv = ["run", str(write_tiny_study(tmp_path)), "--arms", "moc"]
    sharded = [*argv, "trainer.devices=2", "trainer.strategy=fsdp"]
    stop = {"at": "after step", "phase": "skills", "step": 2, "signal": signal.SIGTERM}
    log, ranks = tmp_path / "log", launched_by_torchrun(2)
    codes = in_child("command", log=log, env=ranks, argv=sharded, stop=stop)
    assert codes == [143, 143], log_of(tmp_path)
    run = tmp_path / "runs/tiny/arms/moc/seed-0"
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["skills-00000002"]
    assert in_child("command", log=log, argv=argv) == [0], log_of(tmp_path)
    steps = [(r["phase"], r["step"]) for r in read(run / "metrics.jsonl")]
    evals = [("start", 0), ("facts", 8), ("skills", 6)]
    expected = [("facts", s) for s in range(1, 9)] + [("skills", s) for s in range(1, 7)] + evals
    assert sorted(steps) == sorted(expected)
    for boundary in ("0-start", "1-facts", "2-skills"):
        folder = run / "boundaries" / boundary
        record = json.loads((folder / "evals.json").read_text())
        tokenizer = build_tokenizer(tiny_study(tmp_path))
        scores, _ = BoundaryEvaluator(tiny_study(tmp_path), tokenizer).score(load_model(folder))
        assert record["bits_per_byte"] == pytest.approx(scores["bits_per_byte"], rel=1e-6)
