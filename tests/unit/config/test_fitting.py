"""A study whose values need no conversion is what OmegaConf would make of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from moc.config.fitting import fitting_study
from moc.config.layers import merged, with_arms
from moc.config.load import _converted, _read_with_parents
from tests.conftest import ROOT
from tests.support.helpers_training import write_tiny_study

SHIPPED = sorted(ROOT.glob("experiments/**/*.yaml"))


def read(path: Path) -> dict[str, Any]:
    return with_arms(merged(_read_with_parents(path)), {})


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_study_is_what_omegaconf_makes_of_it(path: Path) -> None:
    raw = read(path)
    study = fitting_study(raw)
    assert study == (made := _converted(raw, str(path), [("", raw)], stored=False))
    assert repr(study) == repr(made), "1 equals 1.0"


def test_arms_share_nothing(tmp_path: Path) -> None:
    """What is set in one must not appear in another."""
    study = fitting_study(read(write_tiny_study(tmp_path)))
    assert study is not None
    study.arms["moc"].phases["facts"].mixture["people"] = 7.0
    assert study.arms["backbone"].phases["facts"].mixture == {"people": 1.0}
    assert study.phases["facts"].mixture == {"people": 1.0}


@pytest.mark.parametrize(
    "section",
    [
        {"trainer": {"timeout_sec": "60"}},
        {"trainer": {"timeout_sec": True}},
        {"trainer": {"timeout_sec": 10**400}},
        {"trainer": {"compile": 1}},
        {"trainer": {"compile": "yes"}},
        {"trainer": {"num_nodes": 1.0}},
        {"trainer": {"num_nodes": None}},
        {"trainer": {"strategy": "dp"}},
        {"trainer": {"stratgy": "ddp"}},
        {"trainer": None},
        {"trainer": ["cpu"]},
        {"name": 7},
        {"name": "${oc.env:USER}"},
        {"name": "a-${description}"},
        {"description": "???"},
        {"seeds": [0, "1"]},
        {"seeds": {"0": 1}},
        {"evals": {"num_fewshot": {"arc": "3"}}},
        {"evals": {"num_fewshot": {3: 3}}},
        {"tuning": {"axes": {"lr_scale": ["${name}"]}}},
    ],
    ids=str,
)
def test_what_is_to_convert_or_to_refuse_is_omegaconf_s(section: dict[str, Any]) -> None:
    assert fitting_study(section) is None


def test_an_optional_section_may_be_null_or_empty() -> None:
    study = fitting_study({"model": {"memory": None}, "tuning": {}})
    assert study is not None and study.model.memory is None
    assert study.tuning is not None and study.tuning.seeds == [1000]
