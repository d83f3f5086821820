"""A study with a task of the user's own, from its YAML to the report."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest

from moc.cli import main
from moc.config.schema import StudyConfig
from moc.data.tokenizer import build_tokenizer
from moc.evaluate.evaluator import BoundaryEvaluator
from tests.support.fake_tasks import ITEMS, write_task
from tests.support.helpers_training import tiny_study, write_tiny_study

SETTINGS = ("evals.task_paths=[tasks]", "evals.tasks=[facts_choice,quiz]", "evals.num_items=4")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own")
    write_tiny_study(folder)
    write_task(folder / "tasks", "quiz")
    write_task(folder / "tasks", "other", more="tag: others\n")
    return folder


@pytest.fixture(autouse=True)
def no_hub(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    connect = socket.socket.connect

    def local_only(self: socket.socket, address: Any) -> None:
        if isinstance(address, tuple) and address[0] not in ("127.0.0.1", "localhost", "::1"):
            raise AssertionError(f"asked the network: {address}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", local_only)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(folder)


def eval_hash(study: StudyConfig) -> str:
    return BoundaryEvaluator(study, build_tokenizer(study)).eval_hash


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["evals.task_paths=[gone]"], "evals.task_paths: "),
        (["evals.tasks=[quizz]"], "no task 'quizz'; did you mean 'quiz'"),
        (["evals.task_paths=[code]"], "!function code.ask', code that would be run"),
        (["evals.task_paths=[pooled]"], "'quiz' has no score that every item has on its own"),
    ],
)
def test_a_task_that_cannot_be_used_ends_the_command_before_anything_is_written(
    folder: Path, capsys: pytest.CaptureFixture[str], settings: list[str], said: str
) -> None:
    write_task(folder / "code", "quiz", more="doc_to_text: !function code.ask\n")
    write_task(folder / "pooled", "quiz", more="metric_list: [{metric: f1, aggregation: f1}]\n")
    assert main(["run", "tiny.yaml", *SETTINGS, *settings]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("moc: ") and said in line
    assert not (folder / "runs").exists()


def test_a_users_task_goes_the_whole_way_to_the_report(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Records, items, baselines, intervals and forgetting, as of any other task."""
    assert main(["run", "tiny.yaml", *SETTINGS]) == 0
    study = tiny_study(folder, *SETTINGS)
    run = study.dir / "arms/moc/seed-0"
    for boundary in ("0-start", "1-facts", "2-skills"):
        place = run / "boundaries" / boundary
        score = json.loads((place / "evals.json").read_text())["tasks"]["quiz"]
        lines = (place / "samples/quiz.jsonl").read_text().splitlines()
        hits = [json.loads(line)["correct"] for line in lines]
        assert score["num_items"] == len(hits) == 4
        assert score["value"] == pytest.approx(sum(hits) / 4)
        assert score["chance"] == pytest.approx(1 / 3)
    journal = (run / "metrics.jsonl").read_text()
    assert '"forgetting/quiz"' in journal and '"eval/quiz/acc"' in journal
    assert '"control/knockout-bank/quiz"' in journal
    assert "quiz" in capsys.readouterr().out
    report = study.dir / "report"
    assert "quiz" in (report / "report.html").read_text()
    shown = [path.name for path in report.rglob("*.csv") if "quiz" in path.read_text()]
    assert len(shown) > 3, shown

    monkeypatch.chdir("/")  # a stored study finds the folder from anywhere
    assert main(["eval", str(run / "boundaries/2-skills"), "--suite", "others"]) == 0
    record = json.loads((run / "boundaries/2-skills/suites/others.json").read_text())
    assert record["tasks"]["others"]["num_items"] == len(ITEMS)
    monkeypatch.chdir(folder)

    before = eval_hash(study)
    assert before == json.loads((run / "boundaries/2-skills/evals.json").read_text())["eval_hash"]
    other, data = folder / "tasks/other.jsonl", folder / "tasks/quiz.jsonl"
    other.write_text(other.read_text().replace("is 0", "is 9"))
    assert eval_hash(study) == before  # is not asked
    data.write_text(data.read_text().replace("is 0", "is 9"))
    assert eval_hash(study) != before
