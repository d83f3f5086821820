"""Whether a memory is needed: demand against what a dense arm can hold, by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from moc.config.load import load_study
from moc.data.known import bits_demanded
from moc.plan.capacity import Demand, bits_per_parameter, demands_of, render_demands
from moc.plan.flops import parameter_counts
from moc.verbs.plan import plan_text

STUDY = """
name: demanding
model: {preset: tiny}
tokenizer: {kind: words, vocab_size: 600}
data:
  a: {kind: records, num_records: 100, num_attributes: 4, value_bits: [6], key_words: 2}
  b: {kind: records, num_records: 50, num_attributes: 2, value_bits: [1, 3], key_words: 3}
  skills: {kind: skills}
phases:
  learn: {mixture: {a: 3, skills: 1}, tokens: 121_600, tokens_per_step: 1280, context_length: 40}
  more: {mixture: {b: 1}, tokens: 51_200, tokens_per_step: 640, context_length: 10, packing: documents}
arms:
  moc: {}
  dense: {model: {memory: null}}
  late: {model: {memory: null}, phases: {learn: {mixture: {skills: 1, a: 0.5}}}}
"""  # noqa: E501


@pytest.mark.parametrize(
    ("exposures", "bits"), [(1000, 2), (100, 1), (10**5, 2), (10, 0), (0.1, 0), (316.228, 1.5)]
)
def test_published_points_and_the_line_between(exposures: float, bits: float) -> None:
    assert bits_per_parameter(exposures) == pytest.approx(bits, abs=1e-5)


def test_demand_and_exposures_by_hand(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(STUDY)
    study = load_study(tmp_path / "study.yaml")
    assert bits_demanded(study) == {"a": 100 * 4 * 6, "b": 50 * 2 * 2}
    dense, late = demands_of(study, bits_demanded(study))
    assert (dense.arm, late.arm) == ("dense", "late")
    # a: three quarters of the tokens, 11 tokens a document, of 100; b: 10 tokens a row, of 50
    seen = (0.75 * 121_600 / 11 / 100 + 51_200 / 10 / 50) / 2
    assert dense.exposures == pytest.approx(seen) and dense.bits == 2600
    assert dense.num_parameters == parameter_counts(study.arms["dense"].model).total
    assert late.exposures == pytest.approx((121_600 / 3 / 11 / 100 + 51_200 / 10 / 50) / 2)


def test_it_is_not_known_how_often_text_of_an_own_tokenizer_is_seen(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(STUDY.replace("kind: words, ", ""))
    study = load_study(tmp_path / "study.yaml")
    dense, _ = demands_of(study, bits_demanded(study))
    assert dense.exposures is None and dense.capacity == dense.num_parameters
    assert "each seen 100 times, say," in str(dense)


def test_a_low_ratio_is_warned_of_and_a_high_one_is_not(tmp_path: Path) -> None:
    low, high = Demand("x", 24_000, 100_000, 100.0), Demand("x", 26_000, 100_000, 100.0)
    assert str(low).endswith("demand ratio 0.24; below 0.25, no memory is needed to learn this")
    assert str(high).endswith("demand ratio 0.26")
    assert max(map(len, render_demands([low]))) <= 100
    (tmp_path / "study.yaml").write_text(STUDY)
    text, _ = plan_text(load_study(tmp_path / "study.yaml"))
    assert "a: 100 records x 24.0 bits of knowledge = 2,400 bits" in text
    assert "no memory is needed" in text
