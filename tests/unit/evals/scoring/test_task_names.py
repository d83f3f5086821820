"""What the names in ``evals.tasks`` and ``--suite`` stand for."""

import pytest

from evals.scoring import hub
from evals.scoring.task_names import expand_tasks
from moc.errors import ConfigError

TWO = {f"facts_answer.{name}": ("facts_answer", name) for name in ("people_a", "people_b")}
ONE = {"facts_choice": ("facts_choice", "people"), "facts_answer": ("facts_answer", "people")}


@pytest.fixture(autouse=True)
def few_stock_tasks(monkeypatch):
    """Reading all of lm-eval's configs takes tens of seconds."""
    monkeypatch.setattr(hub, "_index", lambda folder: {"hellaswag": None, "boolq": None})


@pytest.mark.parametrize(
    ("names", "of_study", "tasks"),
    [
        (["facts_answer"], ONE, ["facts_answer"]),
        (["facts_answer", "boolq"], TWO, [*TWO, "boolq"]),
        (["facts_answer.people_b"], TWO, ["facts_answer.people_b"]),
        (["facts"], ONE, ["facts_choice", "facts_answer"]),
        (["boolq", "paper"], {}, ["boolq", "mmlu", "arc_challenge", "openbookqa"]),
        (["hellaswag", "facts_answer", "hellaswag"], ONE, ["hellaswag", "facts_answer"]),
        (["facts_answer.people_a"], None, ["facts_answer.people_a"]),
    ],
)
def test_suites_and_base_tasks_stand_for_tasks_each_asked_once(names, of_study, tasks):
    assert expand_tasks(names, of_study=of_study) == tasks


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("papr", "no task 'papr'; did you mean 'paper'"),
        ("helaswag", "did you mean 'hellaswag'"),
        ("facts_answer.people_c", "no source for 'facts_answer.people_c'; did you mean 'facts_an"),
        ("xqzzy", "no task 'xqzzy'; choose from .*, or any task of lm-eval"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(name, message):
    with pytest.raises(ConfigError, match=message):
        expand_tasks([name], of_study=TWO)
