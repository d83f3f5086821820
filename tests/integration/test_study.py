"""A whole study, end to end: its files, its evaluations, what crosses from phase to phase."""

from __future__ import annotations

import json
import shutil
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import moc.study
from moc.cli import main
from moc.config.load import load_study
from moc.config.schema import CarryConfig, StudyConfig
from moc.errors import ConfigError
from moc.model.files import load_model, read_safetensors
from moc.store.files import read_json
from moc.store.journal import read
from moc.store.manifest import check_manifest
from moc.study import run_study
from moc.train.checkpoints import load_training_state
from moc.verbs.eval import evaluate_stored
from moc.verbs.generate import continue_prompts
from tests.support.child_tasks import NoTracker
from tests.support.helpers_training import tiny_study

# both phases go over the same few documents repeatedly
SHORT = [
    "data.people.num_people=10",
    "data.people.num_phrasings=1",
    "phases.facts.schedule.kind=constant",
]
TASKS = ["facts_choice", "facts_answer", "skills_answer"]
SCOPES = {"moc": "segment", "published": "sequence", "backbone": "none"}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> StudyConfig:
    """Both arms and one that is not causal, run to the end."""
    study = tiny_study(
        tmp_path_factory.mktemp("study"),
        f"evals.tasks={json.dumps(TASKS)}",
        "data.people.num_people=30",
        "evals.route_on=both",
    )
    published = deepcopy(study.arms["moc"])
    assert published.model.memory is not None
    published.model.memory.chapters.router.scope = "sequence"
    study.arms = {"moc": study.arms["moc"], "published": published} | study.arms
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(moc.study, "Tracker", NoTracker)
        report = run_study(study)
    assert report == study.dir / "report/report.html" and report.is_file()
    return study


@pytest.fixture(autouse=True)
def no_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moc.study, "Tracker", NoTracker)


def run_quietly(monkeypatch: pytest.MonkeyPatch, folder: Path, *overrides: str) -> StudyConfig:
    """The memory arm of the tiny study without evaluations or report."""
    study = tiny_study(folder, "evals.tasks=[]", *overrides)
    run_memory_arm(monkeypatch, study)
    return study


def run_memory_arm(monkeypatch: pytest.MonkeyPatch, study: StudyConfig) -> None:
    monkeypatch.setattr(moc.study, "build_report", lambda folder: folder)
    run_study(study, arms=["moc"])


def run_dir(study: StudyConfig, arm: str = "moc") -> Path:
    return study.dir / f"arms/{arm}/seed-0"


def weights(study: StudyConfig, boundary: str, arm: str = "moc") -> dict[str, torch.Tensor]:
    return read_safetensors(run_dir(study, arm) / f"boundaries/{boundary}/model.safetensors")


def load_json(path: Path) -> dict[str, Any]:
    return read_json(path)


def logged(study: StudyConfig, arm: str) -> set[str]:
    """Names of all metrics in the journal."""
    journal = read(run_dir(study, arm) / "metrics.jsonl")
    return {name for record in journal for name in record["metrics"]}


def test_the_studys_own_files(study: StudyConfig) -> None:
    counted = replace(study, trainer=replace(study.trainer, devices=1))
    assert load_study(study.dir / "study.yaml") == counted
    assert set(load_json(study.dir / "plan.json")["arms"]) == set(SCOPES)
    assert {"python", "torch", "lightning", "git_commit", "cpu_count", "gpu"} <= set(
        load_json(study.dir / "environment.json")
    )
    datasets = load_json(study.dir / "datasets.json")
    assert {phase: set(sources) for phase, sources in datasets.items()} == {
        "facts": {"people"},
        "skills": {"skills", "people"},
    }
    for task in TASKS:
        assert len((study.dir / f"tasks/{task}.jsonl").read_text().splitlines()) == 4
    assert (study.dir / "tokenizer").is_dir()


@pytest.mark.parametrize("arm", SCOPES)
def test_the_files_of_a_run(study: StudyConfig, arm: str) -> None:
    folder = run_dir(study, arm)
    info = load_json(folder / "run.json")
    assert info["status"] == "finished" and (info["arm"], info["seed"]) == (arm, 0)
    assert (info["scope"], info["causal"]) == (SCOPES[arm], arm != "published")
    assert sorted(path.name for path in (folder / "boundaries").iterdir()) == [
        "0-start",
        "1-facts",
        "2-skills",
    ]
    assert not list((folder / "checkpoints").glob("*"))
    assert (folder / "memory_use.jsonl").exists() == (arm != "backbone")
    journal = read(folder / "metrics.jsonl")
    assert read(folder / "metrics.jsonl", committed=True) == journal
    last = [record for record in journal if "skills/train/loss" in record["metrics"]][-1]
    names = {"loss", "lr", "grad_norm", "tokens_per_sec", "data_wait", "mfu"}
    assert {f"skills/train/{name}" for name in names} <= set(last["metrics"])
    assert ("skills/memory/entropy" in last["metrics"]) == (arm != "backbone")
    assert (last["phase"], last["step"], last["tokens"]) == ("skills", 6, 2048 + 1536)


def test_chapter_lines_add_up(study: StudyConfig) -> None:
    """Counts over the window: segments so far x K, in both layers; never the shared chapter."""
    lines = read(run_dir(study) / "memory_use.jsonl")
    assert len(lines) == 2 * (8 + 6)
    for line in lines:
        segments = 256 // 16  # of a step
        assert len(line["load"]) == 9 and line["load"][0] == 0 and line["num_always"] == 1
        assert sum(line["load"]) == line["step"] * segments * 2
        assert line["window_tokens"] == line["step"] * 256
        assert 0 < line["shared_mass"] < 1
        assert line["dead_share"] == line["load"][1:].count(0) / 8


@pytest.mark.parametrize("arm", ["moc", "backbone"])
@pytest.mark.parametrize(
    ("boundary", "tokens"), [("0-start", 0), ("1-facts", 2048), ("2-skills", 3584)]
)
def test_every_boundary_is_evaluated_and_stored(
    study: StudyConfig, arm: str, boundary: str, tokens: int
) -> None:
    folder = run_dir(study, arm) / "boundaries" / boundary
    record, manifest = load_json(folder / "evals.json"), check_manifest(folder)
    assert manifest["tokens"] == record["tokens"] == tokens
    assert record["fingerprint"] == manifest["sha256"]["model.safetensors"]
    assert list(record["tasks"]) == TASKS and set(record["bits_per_byte"]) == {"people", "skills"}
    for task in TASKS:
        assert record["tasks"][task]["num_items"] == 4
        samples = (folder / f"samples/{task}.jsonl").read_text().splitlines()
        correct = [json.loads(sample)["correct"] for sample in samples]
        assert sum(correct) / 4 == record["tasks"][task]["value"]
    entries = [r for r in read(run_dir(study, arm) / "metrics.jsonl") if r["tokens"] == tokens]
    (scored,) = [e["metrics"] for e in entries if "eval/people/bits_per_byte" in e["metrics"]]
    assert scored["eval/people/bits_per_byte"] == record["bits_per_byte"]["people"]
    assert scored["eval/facts_choice/acc"] == record["tasks"]["facts_choice"]["value"]


def test_both_arms_start_from_the_same_backbone(study: StudyConfig) -> None:
    with_memory, without = weights(study, "0-start"), weights(study, "0-start", "backbone")
    assert set(without) < set(with_memory)
    assert all(torch.equal(tensor, with_memory[name]) for name, tensor in without.items())


def test_eval_of_a_stored_boundary_gives_the_same_numbers(study: StudyConfig) -> None:
    evaluator = moc.study.BoundaryEvaluator(study, moc.study.build_tokenizer(study))
    folder = run_dir(study) / "boundaries/1-facts"
    expected = load_json(folder / "evals.json")
    scores, _ = evaluator.score(load_model(folder))
    assert scores["tasks"] == expected["tasks"]
    assert scores["bits_per_byte"] == expected["bits_per_byte"]
    table = evaluate_stored(folder)
    assert f"{expected['bits_per_byte']['people']:.4f}" in table
    assert load_json(folder / "evals.json") == expected  # nothing on disk changed


def test_evaluating_leaves_training_alone(
    study: StudyConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same weights with three tasks as with none, to the bit."""
    alone = run_quietly(monkeypatch, tmp_path, "data.people.num_people=30")
    for boundary in ("1-facts", "2-skills"):
        expected, found = weights(study, boundary), weights(alone, boundary)
        for name, tensor in expected.items():
            assert torch.equal(found[name], tensor), f"{boundary}: {name}"


def test_a_phase_that_freezes_the_bank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = run_quietly(monkeypatch, tmp_path, "phases.skills.optimizer.bank.freeze=true")
    start, facts, skills = (weights(study, b) for b in ("0-start", "1-facts", "2-skills"))
    assert not torch.equal(start["banks.0.rows"], facts["banks.0.rows"])
    assert torch.equal(facts["banks.0.rows"], skills["banks.0.rows"])
    assert not torch.equal(facts["embedding.weight"], skills["embedding.weight"])


def test_moments_cross_a_boundary_only_if_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a bank that the first phase froze: it joins without moments of its own."""
    frozen = "phases.facts.optimizer.bank.freeze=true"
    (tmp_path / "fresh").mkdir()
    (tmp_path / "carried").mkdir()
    fresh = run_quietly(monkeypatch, tmp_path / "fresh", frozen)
    carried = run_quietly(
        monkeypatch, tmp_path / "carried", frozen, "phases.skills.carry.optimizer=true"
    )
    assert not (run_dir(fresh) / "boundaries/1-facts/training.pt").exists()
    state = load_training_state(run_dir(carried) / "boundaries/1-facts")["optimizer"]["state"]
    assert "banks.0.rows" not in state and state["embedding.weight"]["step"] == 8
    one, other = weights(fresh, "1-facts"), weights(carried, "1-facts")
    assert all(torch.equal(one[name], other[name]) for name in one)
    one, other = weights(fresh, "2-skills"), weights(carried, "2-skills")
    assert not torch.equal(one["embedding.weight"], other["embedding.weight"])


def test_carrying_everything_over_equals_one_long_phase(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights, moments, schedule and data position: a boundary then changes nothing."""
    (tmp_path / "two").mkdir()
    (tmp_path / "one").mkdir()
    two = tiny_study(tmp_path / "two", "evals.tasks=[]", *SHORT)
    one = tiny_study(tmp_path / "one", "evals.tasks=[]", *SHORT, "phases.facts.tokens=3584")
    phases = two.arms["moc"].phases
    settings = {"tokens": 1536, "carry": CarryConfig(True, True, True)}
    phases["skills"] = replace(phases["facts"], **settings)
    for study in (one, two):
        run_memory_arm(monkeypatch, study)
    expected, found = weights(one, "1-facts"), weights(two, "2-skills")
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("evals.tasks=[facts_choise]", "no task 'facts_choise'; did you mean 'facts_choice'"),
        ("evals.num_items=0", "evals.num_items must be from 1 to"),
    ],
)
def test_a_wrong_evaluation_is_found_before_training(
    tmp_path: Path, override: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        run_study(tiny_study(tmp_path, override))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "runs").exists()


def test_an_unknown_arm_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no arm 'mocc'.*did you mean 'moc'"):
        run_study(tiny_study(tmp_path), arms=["mocc"])


@pytest.mark.parametrize("arm", ["moc", "backbone"])
def test_forgetting_is_in_the_journal_from_the_second_phase_on(
    study: StudyConfig, arm: str
) -> None:
    journal = read(run_dir(study, arm) / "metrics.jsonl")
    (found,) = [r for r in journal if any(key.startswith("forgetting/") for key in r["metrics"])]
    assert (found["phase"], found["tokens"]) == ("skills", 3584)
    folders = [run_dir(study, arm) / "boundaries" / b for b in ("0-start", "1-facts", "2-skills")]
    for task in TASKS:
        first, second, last = (
            load_json(folder / "evals.json")["tasks"][task]["value"] for folder in folders
        )
        assert found["metrics"][f"forgetting/{task}"] == max(first, second) - last


@pytest.mark.parametrize("arm", SCOPES)
def test_leakage_is_measured_where_routing_sees_later_tokens(study: StudyConfig, arm: str) -> None:
    """All arms on the same tokens; the causal ones have none and are not asked."""
    everyone = [
        load_json(run_dir(study, name) / "boundaries/2-skills/evals.json") for name in SCOPES
    ]
    record = load_json(run_dir(study, arm) / "boundaries/2-skills/evals.json")
    leakage, causal = record["leakage"], arm != "published"
    assert leakage["causal"] == causal
    assert set(leakage["sources"]) == {"people", "people-trained", "skills"}
    for source, found in leakage["sources"].items():
        sizes = {r["leakage"]["sources"][source]["num_tokens"] for r in everyone}
        assert sizes == {found["num_tokens"]} and ("leakage" in found) != causal
        if not causal:
            bits = found["prefix"] - found["full"]
            assert found["leakage"]["value"] == pytest.approx(bits, abs=1e-9) and bits != 0
    assert set(record["tasks"]) == set(TASKS) | (set() if causal else {"facts_choice.full"})
    assert set(leakage["tasks"]) == (set() if causal else {"facts_choice"})
    assert ("eval/people/leakage" in logged(study, arm)) != causal


@pytest.mark.parametrize("arm", SCOPES)
def test_which_chapters_are_read_is_kept_at_every_boundary(study: StudyConfig, arm: str) -> None:
    records = [
        load_json(run_dir(study, arm) / "boundaries" / boundary / "evals.json")["memory"]
        for boundary in ("0-start", "1-facts", "2-skills")
    ]
    if arm == "backbone":
        assert records == [{}, {}, {}]
        return
    assert ["drift" in record for record in records] == [False, True, True]
    for record in records:
        for source in record["sources"].values():
            groups = source["num_tokens"] // (16 if arm == "moc" else 64)
            assert set(source["load"]) == {"0", "1"}
            assert all(sum(load) == groups * 2 and not load[0] for load in source["load"].values())
    before, after = (weights(study, name, arm) for name in ("1-facts", "2-skills"))
    for layer, drift in records[2]["drift"].items():
        names = [
            f"blocks.{layer}.memory.address.router.linear.{part}" for part in ("weight", "bias")
        ]
        old, new = (torch.cat([w[n].flatten() for n in names]) for w in (before, after))
        assert drift == pytest.approx(float((new - old).norm() / old.norm()), rel=1e-5)
    assert {"memory/drift", "eval/skills/row_overlap"} <= logged(study, arm)


def test_a_part_of_a_study_does_not_leave_two_evaluations_side_by_side(
    study: StudyConfig, tmp_path: Path
) -> None:
    """With other items, the arms that are not run are scored again too, and nothing is trained."""
    shutil.copytree(study.runs_dir, tmp_path / "runs")
    evals = replace(study.evals, num_items=3)
    again = replace(study, runs_dir=str(tmp_path / "runs"), evals=evals)
    stamps = {file: file.stat().st_mtime_ns for file in again.dir.rglob("*.safetensors")}
    run_study(again, arms=["backbone"])
    for arm in ("moc", "backbone"):
        for folder in (run_dir(again, arm) / "boundaries").iterdir():
            tasks = load_json(folder / "evals.json")["tasks"]  # of every arm, run or not
            assert {score["num_items"] for score in tasks.values()} == {3}, folder
    assert {file: file.stat().st_mtime_ns for file in stamps} == stamps


def test_a_runs_folder_stands_for_its_last_model(study: StudyConfig) -> None:
    """Not for the untrained one, whose text would be taken for the result."""
    folder = run_dir(study, "moc")

    def write(path: Path) -> str:
        pieces = continue_prompts(path, ["Question:"], max_new_tokens=40, temperature=1.0)
        return "".join(piece or "" for _, piece in pieces)

    last = write(folder / "boundaries/2-skills")
    assert write(folder) == last != write(folder / "boundaries/0-start")


def test_generate_streams_one_prompt_and_takes_a_batch(
    study: StudyConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    """Alone or beside another prompt, greedy text is the same; a stop string is left out."""

    def generate(*words: str, arm: str = "moc") -> tuple[int, str, str]:
        code = main(["generate", str(run_dir(study, arm)), "--max-new-tokens", "12", *words])
        return code, *capsys.readouterr()

    code, alone, _ = generate("--prompt", "Question: What")
    assert code == 0 and alone.endswith("\n") and len(alone) > 2
    code, both, _ = generate("--prompt", "Question: What", "--prompt", "The birth city of")
    assert code == 0 and f"[0] {alone}" in both and "[1] " in both
    assert generate("--prompt", "Question: What", "--stop", alone[:2])[1] == "\n"
    sampled = ("--prompt", "a", "--temperature", "1", "--top-k", "50", "--top-p", "0.9")
    assert generate(*sampled, "--seed", "1") == generate(*sampled, "--seed", "1")
    assert generate(*sampled, "--seed", "1") != generate(*sampled, "--seed", "2")
    running = ("--prompt", "a", "--policy", "running")
    assert generate(*running, "--window", "4", arm="published")[0] == 0
    for words, said in (
        (running, "--policy is for scope sequence"),
        (("--prompt", "a", "--window", "4"), "--window is of --policy running"),
        (("--prompt", ""), "--prompt is empty"),
        (("--prompt", "a", "--stop", ""), "--stop is empty"),
    ):
        code, out, err = generate(*words)
        assert (code, out) == (2, "") and said in err and err.count("\n") == 1
