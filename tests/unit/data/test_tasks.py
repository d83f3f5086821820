"""Evaluation items: the fields the tasks read, and nothing that was trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from moc.config import ConfigError, EvalConfig, PhaseConfig, SourceConfig, StudyConfig
from moc.data.document import document_text
from moc.data.source import documents
from moc.data.tasks import write_task_items

TASKS = ["facts_choice", "facts_answer", "skills_answer"]


def study(**people: object) -> StudyConfig:
    return StudyConfig(
        name="study",
        data={
            "people": SourceConfig(num_people=40, **people),
            "skills": SourceConfig(kind="skills", num_examples=2000),
        },
        phases={"pretrain": PhaseConfig(mixture={"people": 1.0, "skills": 1.0})},
        evals=EvalConfig(tasks=TASKS, num_items=50),
    )


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_items_have_the_fields_of_their_task(tmp_path: Path) -> None:
    write_task_items(study(), tmp_path)
    choice, answer, skills = (read(tmp_path / f"{task}.jsonl") for task in TASKS)
    common = {"id", "question", "answer", "attribute", "person_id"}
    assert set(answer[0]) == common and set(choice[0]) == common | {"choices", "label"}
    assert set(skills[0]) == {"id", "prompt", "answer", "skill"}
    for items in (choice, answer, skills):
        assert len(items) == 50 == len({item["id"] for item in items})


def test_items_are_not_in_the_training_documents(tmp_path: Path) -> None:
    write_task_items(study(), tmp_path)
    sources = study().data
    facts = " ".join(document_text(d) for d in documents(sources["people"], "train"))
    assert not [i for i in read(tmp_path / "facts_answer.jsonl") if i["question"] in facts]
    skills = " ".join(document_text(d) for d in documents(sources["skills"], "train"))
    assert not [i for i in read(tmp_path / "skills_answer.jsonl") if i["prompt"] in skills]


def test_items_are_the_same_every_time(tmp_path: Path) -> None:
    write_task_items(study(), tmp_path / "a")
    write_task_items(study(), tmp_path / "b")
    for task in TASKS:
        first, second = (tmp_path / run / f"{task}.jsonl" for run in "ab")
        assert first.read_bytes() == second.read_bytes()


def test_a_task_without_items_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data.people has no items .* lower its question_share"):
        write_task_items(study(question_share=1.0), tmp_path)
    without = study()
    del without.data["people"]
    with pytest.raises(ConfigError, match="no phase trains on a source of kind 'facts'"):
        write_task_items(without, tmp_path)
