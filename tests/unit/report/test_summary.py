"""What a study says in a few lines: nothing that its seeds do not carry."""

from __future__ import annotations

from pathlib import Path

import pytest

from moc.report import load_results
from moc.report.summary import summary_text, summary_values
from tests.support.fake_runs import fake_study, write_run, write_study

SMALL = (40, 20)  # steps per phase
ARMS = ("moc", "iso_flop")


def test_three_seeds_begin_with_their_verdicts_and_say_what_each_arm_forgot(tmp_path: Path) -> None:
    study = fake_study(tmp_path, seeds=(0, 1, 2), num_steps=SMALL, arms=ARMS)
    results = load_results(write_study(study))
    text = summary_text(results)
    first = text.splitlines()[0]
    assert first.startswith("- ") and "iso_flop" in first
    assert "One seed supports no claim" not in text
    assert study.description in text and "6 of 6 runs complete" in text
    head, rule, *rows = [
        [cell.strip().removesuffix("&emsp;") for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("|")
    ]
    assert head == ["forgotten, points", "facts_choice", "facts_answer"] and len(rule) == 3
    assert [row[0] for row in rows] == ["moc†", "iso_flop"]
    # 0.655 -> 0.31, the same change in every seed
    assert rows[1][2].startswith("+34.5 [") and "†" in text.split("non-causal")[0]
    values = summary_values(results)
    assert values["forgetting/facts_answer/iso_flop"] == pytest.approx(0.345)
    assert values["final/facts_answer/iso_flop"] == pytest.approx(0.31 + 0.02)  # of three seeds
    assert "final/people/bits_per_byte/moc" in values


def test_one_seed_begins_with_a_warning(tmp_path: Path) -> None:
    results = load_results(write_study(fake_study(tmp_path, num_steps=SMALL, arms=ARMS)))
    assert summary_text(results).startswith("- One seed supports no claim")


def test_an_unfinished_study_claims_nothing_and_has_no_final_scores(tmp_path: Path) -> None:
    study = fake_study(tmp_path, seeds=(0, 1, 2), num_steps=SMALL, arms=ARMS)
    write_study(study, runs=False)
    write_run(study, "moc", 0, boundaries=2, status="running")
    results = load_results(study.dir)
    text = summary_text(results)
    assert text.startswith("- 0 of 3 seeds are complete.") and "forgets" not in text
    assert "0 of 6 runs complete" in text
    assert summary_values(results) == {}
