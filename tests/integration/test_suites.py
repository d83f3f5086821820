"""``moc eval --suite`` on a model that always says yes, without a network."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch

from moc.cli import main
from moc.config.data import SourceConfig
from moc.config.load import save_study
from moc.config.schema import ArmConfig, PhaseConfig, StudyConfig
from moc.data.tokenizer import build_tokenizer
from moc.model import ModelConfig, build_model
from moc.model.files import save_model
from moc.store.files import seal_text
from moc.store.manifest import write_manifest

pytestmark = pytest.mark.skipif("MOC_HUB_MIRROR" not in os.environ, reason="no hub mirror here")


@pytest.fixture(scope="module")
def boundary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study's folder with one boundary: after "Answer:" its model writes " yes"."""
    folder = tmp_path_factory.mktemp("suites")
    text = folder / "answers.txt"
    text.write_text("Question: is it?\nAnswer: yes\n\nQuestion: is it?\nAnswer: no\n\n" * 50)
    model = ModelConfig(vocab_size=300, dim=16, num_layers=1, num_heads=2, mlp_dim=16, memory=None)
    phases = {"pretrain": PhaseConfig(mixture={"text": 1.0})}
    study = StudyConfig(
        name="yes",
        runs_dir=str(folder),
        cache_dir=str(folder / "cache"),
        model=model,
        data={"text": SourceConfig(kind="text", path=str(text), validation_path=str(text))},
        phases=phases,
        arms={"backbone": ArmConfig(model=model, phases=phases)},
    )
    study.tokenizer.vocab_size = 300
    study.evals.context_length = 32
    study.dir.mkdir()
    tokenizer = build_tokenizer(study)
    tokenizer.save(study.dir / "tokenizer")
    save_study(study, study.dir / "study.yaml")
    seal_text(study.dir / "study.yaml")
    (colon,), (yes,), (no,) = (tokenizer.encode(text) for text in (":", " yes", " no"))
    transformer = build_model(model)
    with torch.no_grad():
        for parameter in transformer.parameters():
            if parameter.ndim > 1:
                parameter.zero_()
        for token, size in ((colon, 1.0), (yes, 3.0), (no, 2.0)):
            transformer.embedding.weight[token, 0] = size
    place = study.dir / "arms/backbone/seed-0/boundaries/0-start"
    place.mkdir(parents=True)
    save_model(transformer.state_dict(), model, place)
    write_manifest(place)
    return place


def evaluate(boundary: Path, *words: str) -> dict[str, Any]:
    assert main(["eval", str(boundary), *words]) == 0
    suite = words[words.index("--suite") + 1]
    return json.loads((boundary / f"suites/{suite}.json").read_text())


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("an evaluation asked the network")

    monkeypatch.setattr(socket.socket, "__init__", refuse)


def test_always_yes_is_the_published_majority_of_boolq(
    boundary: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All 3,270 questions, of which 62.17 % are true: it knows that, and nothing else."""
    score = evaluate(boundary, "--suite", "boolq")["tasks"]["boolq"]
    assert score["num_items"] == 3270
    assert score["predictions"] == {"no": 0, "yes": 3270}
    assert round(100 * score["value"], 2) == 62.17
    assert score["centred"] == 0.0
    (row,) = [line for line in capsys.readouterr().out.splitlines() if "0-start  boolq" in line]
    assert row.split()[2:5] == ["acc", "0.6217", "0.0000"]


def test_suite_paper_is_four_tasks_with_shots_and_metric_on_record(
    boundary: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (boundary.parents[4] / "study.yaml").read_bytes()
    record = evaluate(boundary, "evals.context_length=96", "--suite", "paper", "evals.num_items=9")
    tasks = record["tasks"]
    assert list(tasks) == ["mmlu", "arc_challenge", "boolq", "openbookqa"]
    assert all(score["num_items"] == 9 for score in tasks.values())
    stated = {(score["metric"], score["num_fewshot"]) for score in tasks.values()}
    assert stated == {("acc", 0)}
    assert record["evals"]["context_length"] == 96
    for task, score in tasks.items():
        lines = (boundary / f"suites/paper/{task}.jsonl").read_text().splitlines()
        right = sum(json.loads(line)["correct"] for line in lines)
        assert len(lines) == 9 and score["value"] == pytest.approx(right / 9)
    assert str(boundary / "suites/paper.json") in capsys.readouterr().out
    assert (boundary.parents[4] / "study.yaml").read_bytes() == before
    assert not list((boundary / "suites").rglob("*.partial"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["model.dim=32"], "'model.dim=32': the model is trained"),
        (
            ["evals.hub_mirror=/nowhere", "--suite", "boolq"],
            "evals.hub_mirror: /nowhere is no folder",
        ),
        (["evals.num_itms=3"], "did you mean 'num_items'?"),
    ],
)
def test_a_wrong_request_is_one_line(
    boundary: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    assert main(["eval", str(boundary), *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
