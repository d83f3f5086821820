"""Verdicts in words: who forgets less, who cannot be told apart, and when nothing may be said."""

from __future__ import annotations

import csv
import math
import random
from pathlib import Path

import pytest
from scipy.stats import nct, t

from moc.report.numbers.results import Results, load_results
from moc.report.numbers.verdicts import verdicts
from moc.report.summary import said
from moc.report.tables.verdicts import differences
from tests.support.helpers_report import row_of, set_right, share, study_of

TASKS = ("facts_choice", "facts_answer")


def two_arms(folder: Path, seeds: int = 3) -> Path:
    """moc_segment keeps 80 of 80 right answers in both tasks, iso_flop 40 of 80 in one of them."""
    made = study_of(folder, seeds, "moc_segment", "iso_flop")
    for arm in ("moc_segment", "iso_flop"):
        for task in TASKS:
            set_right(made, arm, "pretrain", task, share(80))
            set_right(made, arm, "ift", task, share(80))
    set_right(made, "iso_flop", "ift", "facts_answer", share(40))
    return made


def words(results: Results) -> dict[tuple[str, str], str]:
    return {(entry.arm, entry.task): entry.words for entry in verdicts(results)}


def test_an_arm_that_forgets_and_one_that_does_not_are_told_apart(tmp_path: Path) -> None:
    results = load_results(two_arms(tmp_path))
    assert words(results) == {
        ("moc_segment", "facts_choice"): "not distinguishable",
        ("moc_segment", "facts_answer"): "forgets less",
    }  # the second base is the first arm: the same two, and not said twice
    (table,) = [table for table in differences(results) if table.rows]
    row = row_of(table, "facts_answer, since pretrain", "moc_segment")
    assert row["difference"].startswith("+40.0 [") and row["verdict"] == "forgets less"
    assert row["its change"].startswith("≈ 0.0 [")
    assert row["change of iso_flop"].startswith("−40.0 [")
    assert "1 × forgets less, 1 × not distinguishable" in table.caption
    sentences = said(results)
    assert sentences[0].startswith("Against iso_flop, 2 comparisons of an arm on a task: 1 × ")
    assert sentences[1].startswith("moc_segment forgets less than iso_flop: facts_answer (+40.0 ")


def test_two_arms_alike_are_not_distinguishable_and_that_is_no_proof(tmp_path: Path) -> None:
    folder = study_of(tmp_path, 3, "moc_segment", "iso_flop")
    rng = random.Random(0)
    for arm in ("moc_segment", "iso_flop"):
        for seed in range(3):
            for boundary, kept in (("pretrain", 0.9), ("ift", 0.6)):
                for task in TASKS:
                    right = [int(rng.random() < kept) for _ in range(100)]
                    set_right(folder, arm, boundary, task, right, seed=seed)
    results = load_results(folder)
    assert set(words(results).values()) == {"not distinguishable"}
    text = " ".join(said(results))
    assert "No arm can be told from iso_flop" in text and "no proof of equality" in text
    points = sorted(100 * entry.detectable for entry in verdicts(results))
    median = f"only a difference of {sum(points) / 2:.1f} points or more would have been seen"
    assert median in text


def test_what_is_not_distinguishable_says_what_would_have_been_seen(tmp_path: Path) -> None:
    """iso_flop keeps 60, 50 and 40 of 80 right answers of one task and moc_segment 50: changes that
    differ by 0.1, 0 and -0.1. Of the other, all: no difference, and no sign of how large."""
    folder = two_arms(tmp_path)
    for arm, rights in (("iso_flop", (60, 50, 40)), ("moc_segment", (50, 50, 50))):
        for seed, right in enumerate(rights):
            set_right(folder, arm, "ift", "facts_answer", share(right), seed=seed)
    results = load_results(folder)
    entries = {entry.task: entry for entry in verdicts(results)}
    entry = entries["facts_answer"]
    (table,) = [table for table in differences(results) if table.rows]
    row = row_of(table, "facts_answer, since pretrain", "moc_segment")
    points = 100 * entry.detectable
    assert row["verdict"] == f"not distinguishable ({points:.1f} points would have been seen)"
    assert math.isnan(entries["facts_choice"].detectable)
    row = row_of(table, "facts_choice, since pretrain", "moc_segment")
    assert row["verdict"] == "not distinguishable"
    # Holm's method tests two such tasks at 0.025, from 6.21 standard errors of 0.1 / sqrt(3) on by
    # t of 2 degrees of freedom
    shift = entry.detectable / (0.1 / math.sqrt(3))
    assert nct.sf(t.ppf(1 - 0.025 / 2, 2), 2, shift) == pytest.approx(0.8, abs=0.03)
    rows = list(csv.DictReader(table.to_csv().splitlines()))
    assert {row["task"]: row["detectable"] for row in rows} == {
        "facts_answer": str(entry.detectable),
        "facts_choice": "",
    }


def test_an_arm_told_apart_needs_no_such_figure(tmp_path: Path) -> None:
    (entry,) = (e for e in verdicts(load_results(two_arms(tmp_path))) if e.words == "forgets less")
    assert math.isnan(entry.detectable)


def test_fewer_than_three_seeds_support_no_claim_however_large_the_effect(tmp_path: Path) -> None:
    for seeds, expected in ((1, "one seed supports no claim"), (2, "two seeds support no claim")):
        results = load_results(two_arms(tmp_path / str(seeds), seeds))
        assert set(words(results).values()) == {expected}
        assert said(results)[0] == results.caution()
        assert "forgets less" not in " ".join(said(results))


def test_a_seed_that_did_not_finish_does_not_count(tmp_path: Path) -> None:
    folder = two_arms(tmp_path)
    (folder / "arms/iso_flop/seed-1/boundaries/2-ift/evals.json").unlink()
    results = load_results(folder)
    assert set(words(results).values()) == {"two seeds support no claim"}
    (entry,) = (entry for entry in verdicts(results) if entry.task == "facts_answer")
    assert entry.difference.num_seeds == 2 and entry.difference.value == pytest.approx(0.4)


def test_what_was_never_learned_cannot_be_forgotten(tmp_path: Path) -> None:
    """3 of 100 where always the same answer scores 3.5 %; the p of the other task is not paid for
    with a test that could not have found anything."""
    folder = two_arms(tmp_path)
    for arm in ("moc_segment", "iso_flop"):
        set_right(folder, arm, "pretrain", "facts_choice", share(27))  # majority 28
    results = load_results(folder)
    found = {entry.task: entry for entry in verdicts(results)}
    assert found["facts_choice"].words == "nothing to forget"
    assert found["facts_answer"].adjusted_p == found["facts_answer"].difference.p
    (table,) = [table for table in differences(results) if table.rows]
    assert row_of(table, "facts_choice, since pretrain", "moc_segment")["adjusted p"] == "—"


def test_an_arm_at_its_floor_does_not_forget_less_than_one_that_learned(tmp_path: Path) -> None:
    """moc_segment 80 -> 40 against iso_flop 2 -> 1, where always the same answer scores 3.5 %."""
    folder = two_arms(tmp_path)
    for arm, before, after in (("moc_segment", 80, 40), ("iso_flop", 2, 1)):
        set_right(folder, arm, "pretrain", "facts_answer", share(before))
        set_right(folder, arm, "ift", "facts_answer", share(after))
    results = load_results(folder)
    found = {entry.task: entry for entry in verdicts(results)}
    assert found["facts_answer"].words == "only one had learned it"
    assert math.isnan(found["facts_answer"].adjusted_p)
    assert found["facts_choice"].adjusted_p == found["facts_choice"].difference.p
    assert not any(claim in " ".join(said(results)) for claim in ("forgets less", "forgets more"))
    assert "1 × only one had learned it" in said(results)[0]


def test_holm_adjusts_over_the_tasks_of_a_pair_of_arms(tmp_path: Path) -> None:
    """Three arms: two tasks in each pair, so that the smaller p doubles and the larger one stays,
    unless it would be below the other."""
    folder = study_of(tmp_path, 3, "moc_segment", "iso_flop", "backbone")
    results = load_results(folder)
    for pair in {(entry.arm, entry.base) for entry in verdicts(results)}:
        entries = [entry for entry in verdicts(results) if (entry.arm, entry.base) == pair]
        small, large = sorted(entries, key=lambda entry: entry.difference.p)
        assert small.adjusted_p == pytest.approx(min(1, 2 * small.difference.p))
        assert large.adjusted_p == pytest.approx(max(small.adjusted_p, large.difference.p))
    assert "not over the 3 pairs of arms" in said(results)[0]
    assert {(entry.arm, entry.base) for entry in verdicts(results)} == {
        ("moc_segment", "iso_flop"),
        ("backbone", "iso_flop"),
        ("backbone", "moc_segment"),
    }


def test_the_csv_file_has_what_a_verdict_rests_on(tmp_path: Path) -> None:
    table = differences(load_results(two_arms(tmp_path)))[0]
    rows = list(csv.DictReader(table.to_csv().splitlines()))
    (row,) = (row for row in rows if row["task"] == "facts_answer")
    assert float(row["difference"]) == pytest.approx(0.4)
    assert float(row["low"]) < 0.4 < float(row["high"]) and float(row["adjusted_p"]) < 0.05
    assert (row["from"], row["to"], row["num_seeds"]) == ("pretrain", "ift", "3")


def test_verdicts_need_no_item_records(tmp_path: Path) -> None:
    """Differences 0.30, 0.32, 0.34 by seed: Student's t with 2 degrees of freedom is 27.7."""
    folder = two_arms(tmp_path)
    for seed, right in enumerate((50, 48, 46)):
        set_right(folder, "iso_flop", "ift", "facts_answer", share(right), seed=seed)
    for path in folder.glob("arms/*/*/boundaries/*/samples/*.jsonl"):
        path.unlink()
    results = load_results(folder)
    (entry,) = (entry for entry in verdicts(results) if entry.task == "facts_answer")
    assert entry.difference.value == pytest.approx(0.32)
    assert entry.difference.p == pytest.approx(0.0013, abs=1e-4)  # two-sided, from a table of t
    assert entry.words == "forgets less"
