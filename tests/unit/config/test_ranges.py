"""Every number of a study states what it may be, and nothing else is taken."""

from __future__ import annotations

import math
import typing
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import pytest

from moc.config.data import SourceConfig
from moc.config.load import load_study
from moc.config.schema import GroupConfig, PhaseConfig, StudyConfig
from moc.errors import ConfigError
from moc.model import ModelConfig, validate_model
from moc.ranges import Range, check_ranges, ranges_of
from tests.support.helpers_training import write_tiny_study


def schemas(schema: Any) -> set[Any]:
    """``schema`` and every dataclass in it."""
    found = {schema}
    for hint in typing.get_type_hints(schema).values():
        for part in parts(hint):
            if is_dataclass(part):
                found |= schemas(part)
    return found


def parts(hint: Any) -> list[Any]:
    """A type and what it consists of."""
    return [hint, *(part for one in typing.get_args(hint) for part in parts(one))]


def without_range(schema: Any) -> list[str]:
    hints = typing.get_type_hints(schema)
    stated = ranges_of(schema)
    return [
        one.name
        for one in fields(schema)
        if {int, float} & {part for part in parts(hints[one.name]) if isinstance(part, type)}
        and stated[one.name] is None
    ]


def test_every_number_states_its_range() -> None:
    assert len(schemas(StudyConfig)) >= 20
    missing = {schema.__name__: without_range(schema) for schema in schemas(StudyConfig)}
    assert not any(missing.values()), f"state a Range beside {missing}"


@dataclass
class Some:
    plain: int = 0
    perhaps: float | None = None
    listed: list[int] = field(default_factory=list)
    stated: Annotated[int | None, Range(0, 1)] = 0
    word: str = ""


def test_a_number_without_a_range_is_found() -> None:
    assert without_range(Some) == ["plain", "perhaps", "listed"]


def test_every_default_is_in_its_range(tmp_path: Path) -> None:
    check_ranges(load_study(write_tiny_study(tmp_path)))


@pytest.mark.parametrize(
    ("limits", "inside", "outside", "words"),
    [
        (Range(0, 10), [0, 10, 0.5], [-1e-9, 10.1], "from 0 to 10"),
        (Range(0, 1, without="low"), [1, 1e-9], [0, 0.0, 1.1], "above 0 and at most 1"),
        (Range(0, 1, without="high"), [0, 0.999], [1, 1.0, -1], "at least 0 and below 1"),
        (Range(1, 10**15), [10**15, 1], [10**15 + 1, 10**400], "from 1 to 1_000_000_000_000_000"),
    ],
)
def test_what_a_range_holds(limits: Range, inside: list, outside: list, words: str) -> None:
    assert str(limits) == words
    assert all(value in limits for value in inside)
    never = [math.nan, math.inf, -math.inf, "1", None, [1]]
    assert not any(value in limits for value in [*outside, *never])


def test_the_walk_reaches_every_number_and_names_it() -> None:
    study = StudyConfig()
    cases: list[tuple[Any, str]] = [
        (replace(study, seeds=[0, 2**40]), "seeds[1] must be from "),
        (replace(study, model=ModelConfig(dim=0)), "model.dim must be from 1 to 131_072, not 0"),
        (replace(study, data={"a": SourceConfig(num_people=0)}), "data.a.num_people"),
        (
            replace(study, phases={"p": PhaseConfig(mixture={"a": math.inf})}),
            "phases.p.mixture.a must be above 0 and at most 1_000_000, not inf",
        ),
    ]
    for config, words in cases:
        with pytest.raises(ValueError) as caught:  # noqa: PT011 the words are checked below
            check_ranges(config)
        assert str(caught.value).startswith(words)
    with pytest.raises(ValueError, match=r"^bank\.lr must be from 0 to 10, not nan$"):
        check_ranges(GroupConfig(lr=math.nan), "bank")


def test_a_number_of_hundreds_of_digits_is_not_printed() -> None:
    with pytest.raises(ValueError, match=r"^model.dim must be .*, not a number of 401 digits$"):
        validate_model(ModelConfig(dim=10**400))
    with pytest.raises(ValueError, match=r"not a number of 12042 digits$"):
        validate_model(ModelConfig(dim=2**40_000))


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("phases.facts.optimizer.bank.lr=.nan", "bank.lr must be from 0 to 10, not nan"),
        ("phases.facts.optimizer.bank.lr=-1e-3", "bank.lr must be from 0 to 10, not -0.001"),
        ("phases.facts.optimizer.bank.weight_decay=-1", "weight_decay must be from 0 to 10, not"),
        ("phases.facts.schedule.decay_fraction=5", "decay_fraction must be from 0 to 1, not 5"),
        ("phases.facts.optimizer.beta1=2", "beta1 must be at least 0 and below 1, not 2"),
        ("phases.facts.optimizer.beta2=1", "beta2 must be at least 0 and below 1, not 1"),
        ("phases.facts.mixture.people=.inf", "mixture.people must be above 0 and at most"),
        ("phases.facts.tokens=" + "9" * 400, "tokens must be from 1 to 1_000_000_000_000_000, not"),
        ("model.dim=1000000000", "model.dim must be from 1 to 131_072, not 1000000000"),
        ("seeds=[1,99999999999999999999]", "seeds[1] must be from -2_147_483_648"),
        ("evals.num_fewshot={facts_choice: -1}", "num_fewshot.facts_choice must be from 0 to"),
        # as text, or from elsewhere: numbers only once all is resolved
        ("phases.facts.optimizer.bank.lr='-5'", "phases.facts.optimizer.bank.lr must be from 0"),
        ("arms.moc.phases.facts.replay=${model.dim}", "arms.moc.phases.facts.replay must be at le"),
    ],
)
def test_values_that_make_no_sense_are_refused(tmp_path: Path, override: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_study(write_tiny_study(tmp_path), [override])
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "override",
    [
        "phases.facts.mixture={people: 0x" + "f" * 4000 + "}",
        "phases.facts.optimizer.beta1='1" + "0" * 400 + "'",
        "evals.in_phase.tasks={a: 1}",
        "model.dim=" + "1" * 5000,
        "seeds[9]=1",
    ],
    ids=lambda override: override[:30],
)
def test_what_python_says_of_a_value_is_one_line(tmp_path: Path, override: str) -> None:
    """OmegaConf lets OverflowError, TypeError and ValueError through."""
    with pytest.raises(ConfigError) as caught:
        load_study(write_tiny_study(tmp_path), [override])
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000
