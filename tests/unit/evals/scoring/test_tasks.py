"""Evaluation items: the fields the tasks read, and nothing that was trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from evals.scoring.study_tasks import study_tasks, write_task_items
from moc.config.data import SourceConfig
from moc.config.schema import EvalConfig, PhaseConfig, StudyConfig
from moc.data.document import document_text
from moc.data.source import documents
from moc.errors import ConfigError

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
    common = {"id", "source", "question", "answer", "attribute", "person_id", "pool_size"}
    assert set(answer[0]) == common and set(choice[0]) == common | {"choices", "label"}
    assert set(skills[0]) == {"id", "source", "prompt", "answer", "skill"}
    assert {item["source"] for item in answer} == {"people"}
    sizes = {item["attribute"]: item["pool_size"] for item in answer}
    assert sizes["major"] == 64 and sizes["birth_date"] == 28 * 12 * 100
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


def two_peoples(*tasks: str, num_items: int | None = 5) -> StudyConfig:
    """Two phases of people, one of skills, and questions about the first people."""
    return StudyConfig(
        name="study",
        data={
            "a": SourceConfig(num_people=10),
            "b": SourceConfig(num_people=20, seed=1),
            "skills": SourceConfig(kind="skills", num_examples=100),
            "quiz": SourceConfig(num_people=10, documents="questions"),
            "unused": SourceConfig(num_people=30, seed=2),
        },
        phases={
            "first": PhaseConfig(mixture={"a": 1.0, "quiz": 1.0}),
            "second": PhaseConfig(mixture={"skills": 1.0}),
            "third": PhaseConfig(mixture={"b": 1.0}),
        },
        evals=EvalConfig(tasks=list(tasks), num_items=num_items),
    )


def test_two_sources_of_a_kind_are_two_tasks() -> None:
    """One score over both could not say which of them was forgotten."""
    assert study_tasks(two_peoples("facts_choice", "facts_answer", "skills_answer")) == {
        "facts_choice.a": ("facts_choice", "a"),
        "facts_choice.b": ("facts_choice", "b"),
        "facts_answer.a": ("facts_answer", "a"),
        "facts_answer.b": ("facts_answer", "b"),
        "skills_answer": ("skills_answer", "skills"),
    }


def test_what_is_asked_for_is_written_and_nothing_else(tmp_path: Path) -> None:
    def written(*tasks: str) -> dict[str, set[str]]:
        folder = tmp_path / "-".join(tasks)
        write_task_items(two_peoples(*tasks), folder)
        found = {path.stem: read(path) for path in folder.iterdir()}
        assert all(len(items) == 5 for items in found.values())
        return {task: {item["source"] for item in items} for task, items in found.items()}

    assert written("facts_answer") == {"facts_answer.a": {"a"}, "facts_answer.b": {"b"}}
    assert written("facts_choice.b", "boolq") == {"facts_choice.b": {"b"}}
    assert written("skills_answer.skills") == {"skills_answer.skills": {"skills"}}
    both = {"facts_choice.a", "facts_choice.b", "facts_answer.a", "facts_answer.b"}
    assert written("facts").keys() == both  # a suite


def test_null_items_are_all_there_are(tmp_path: Path) -> None:
    write_task_items(two_peoples("facts_answer", num_items=None), tmp_path)
    # of half the people, who are asked about nothing in training, six questions each
    assert len(read(tmp_path / "facts_answer.a.jsonl")) == 5 * 6
    assert len(read(tmp_path / "facts_answer.b.jsonl")) == 10 * 6


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ("facts_answer.c", "'facts_answer.c' needs 'c' to be a source of kind 'facts' that a"),
        ("facts_answer.unused", "a phase trains on; choose from a, b"),
        ("facts_answer.quiz", "'facts_answer.quiz' needs 'quiz' to be"),  # a's people once more
        ("skills_answer.skils", "did you mean 'skills'?"),
        ("facts_choice.", "'facts_choice.' needs '' to be a source"),
    ],
)
def test_a_source_that_is_not_trained_has_no_task(task: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        study_tasks(two_peoples(task))
    assert words in str(caught.value)


def test_questions_alone_are_no_source_of_people() -> None:
    study = two_peoples("facts_answer")
    del study.phases["third"], study.phases["first"].mixture["a"]
    with pytest.raises(ConfigError, match="kind 'facts' with documents: all"):
        study_tasks(study)
