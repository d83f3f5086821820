"""Bits held, stored by banks and lost, by hand; and what is said where the assay failed."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest

from evals.statistics.inference import hierarchical_interval
from moc.report.numbers.assay import UNSEEN, bank_verdicts, controls, passed
from moc.report.numbers.results import Results, load_results
from moc.report.numbers.stored import (
    difference,
    in_bank,
    known_sources,
    lost,
    marginal,
    per_parameter,
    right,
    stored,
    table_at,
)
from moc.report.numbers.verdicts import verdicts
from moc.report.page import build_report
from moc.report.sections import all_tables, result_tables
from moc.report.summary import summary_text
from moc.store.files import write_lines
from tests.support.fake_knowledge import BANK, NUM_RECORDS, records_study, write_records_study

DEMAND = NUM_RECORDS * 5 * 8
HELD = {
    ("keys", "learn"): 0.8,
    ("keys_frozen", "learn"): 0.5,
    ("other", "learn"): 0.5,
    ("other_frozen", "learn"): 0.5,
    ("dense", "learn"): 0.6,
    ("keys", "more"): 0.6,
    ("dense", "more"): 0.1,
    ("keys", "learn/" + BANK): 0.2,
}


def loaded(folder: Path, held: dict, *, spread: float = 0.02, **settings: object) -> Results:
    study = records_study(folder, **settings)  # type: ignore[arg-type]
    return load_results(write_records_study(study, held, spread=spread))


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return loaded(tmp_path_factory.mktemp("runs"), HELD)


def test_bits_are_what_was_made_up(tmp_path: Path) -> None:
    exact = loaded(tmp_path, HELD, spread=0)
    assert known_sources(exact) == ["a", "b"]
    assert stored(exact, "keys", "learn", "a").value == pytest.approx(0.8 * DEMAND)
    assert stored(exact, "keys", "start", "a").value == 0
    assert marginal(exact, "keys", "learn", "a").value == pytest.approx(0.3 * DEMAND)
    assert marginal(exact, "dense", "learn", "a") is None
    assert in_bank(exact, "keys", "learn", "a").value == pytest.approx(0.6 * DEMAND)
    assert lost(exact, "keys", "a").value == pytest.approx(0.2 * DEMAND)
    assert lost(exact, "keys", "b") is None  # it was taught last
    cells = ("keys", "learn", ""), ("dense", "learn", "")
    assert difference(exact, "a", *cells).value == pytest.approx(0.2 * DEMAND)
    assert right(exact, "keys", "learn", "a").value == 0
    bits = marginal(exact, "keys", "learn", "a")
    count = exact.study.arms["keys"].cost.parameters.bank
    assert per_parameter(exact, "keys", bits).value == pytest.approx(0.3 * DEMAND / count)


def test_intervals_hold_what_was_made_up(results: Results) -> None:
    held = stored(results, "keys", "learn", "a")
    assert held.low < 0.8 * DEMAND < held.high and held.high - held.low < 0.4 * DEMAND


def test_an_attribute_that_costs_more_than_its_bits_is_not_known(tmp_path: Path) -> None:
    """A model that is wrong and sure has not lost more than it held."""
    found = loaded(tmp_path, {("keys", "learn"): 0.5, ("keys", "more"): -3.0}, spread=0)
    assert stored(found, "keys", "more", "a").value == 0
    assert lost(found, "keys", "a").value == pytest.approx(0.5 * DEMAND)


def test_a_value_beyond_the_context_is_taken_for_the_mean_of_those_that_were_read(
    tmp_path: Path,
) -> None:
    """Nobody is left out for it: 40 bits demanded of each, 8 of them unread for every other one."""
    study = records_study(tmp_path, seeds=1)
    folder = write_records_study(study, {("keys", "learn"): 0.5}, spread=0)
    file = folder / "arms/keys/seed-0/boundaries/1-learn/samples/knowledge.a.jsonl"
    items = [json.loads(line) for line in file.read_text().splitlines()]
    for number, item in enumerate(items):
        item["bits"]["color"] = 1.0 if number < 10 else 3.0  # of 8: 7 or 5 held, 5.2 on average
        if number % 2:
            del item["bits"]["color"]
    write_lines(file, items)
    found = load_results(folder)
    table = table_at(found, "keys", "learn", "a")
    assert len(table.keys) == NUM_RECORDS
    assert table.by_attribute["color"][1] == pytest.approx(5.2)
    assert stored(found, "keys", "learn", "a").value == pytest.approx(NUM_RECORDS * (4 * 4 + 5.2))


def test_the_assay_passes_where_the_control_stores_and_the_other_does_not(
    results: Results,
) -> None:
    assert [(c.arm, c.stores, c.passed) for c in controls(results)] == [
        ("keys", True, True),
        ("other", False, True),
    ]
    assert [entry.words for entry in bank_verdicts(results)] == ["stores", "not distinguishable"]
    found = {(e.arm, e.base): e for e in verdicts(results) if e.task == "a"}
    entry = found["dense", "keys"] if ("dense", "keys") in found else found["keys", "dense"]
    assert entry.words in ("forgets less", "forgets more") and entry.unit == "kbit"
    assert entry.at_stake is not None
    text = summary_text(results)
    assert "Assay passed" in text and "at stake" in text and UNSEEN not in text


FAILURES = {
    "the positive control does not store": {("keys", "learn"): 0.5},
    "a negative control stores": {("other", "learn"): 0.8},
    "the positive control holds less than its twin": {("keys", "learn"): 0.2},
}
CLAIMS = re.compile(r"forgets (less|more) than|(?<!to )\bstores \(|stores less than its twin \(")


@pytest.mark.parametrize("change", FAILURES.values(), ids=FAILURES)
def test_a_failed_assay_gives_no_verdict_anywhere(tmp_path: Path, change: dict) -> None:
    found = loaded(tmp_path, HELD | change)
    assert not passed(found, "keys") and not passed(found, "dense")
    assert {entry.words for entry in verdicts(found)} == {UNSEEN}
    assert {entry.words for entry in bank_verdicts(found)} == {UNSEEN}
    page = build_report(tmp_path / "fake").read_text()
    for text in (page, summary_text(found), result_tables(found)):
        assert UNSEEN in " ".join(text.split()) and not CLAIMS.search(text)
    rows = csv.DictReader((tmp_path / "fake/report/tables/banks.csv").open())
    assert {row["verdict"] for row in rows} == {UNSEEN}


def test_without_the_twins_scores_nothing_is_claimed(tmp_path: Path) -> None:
    study = records_study(tmp_path)
    folder = write_records_study(study, HELD)
    for file in folder.glob("arms/keys_frozen/*/boundaries/*/evals.json"):
        file.unlink()
    found = load_results(folder)
    assert [c.passed for c in controls(found)] == [False, True]
    assert "was not measured" in summary_text(found)


def test_a_study_without_an_assay_speaks_as_before(tmp_path: Path) -> None:
    found = loaded(tmp_path, HELD, assay=False)
    assert controls(found) == [] and passed(found, "keys")
    assert "Assay" not in summary_text(found) and "assay" not in all_tables(found)


def test_one_seed_supports_no_claim_about_a_bank(tmp_path: Path) -> None:
    found = loaded(tmp_path, HELD, seeds=1)
    assert {e.words for e in bank_verdicts(found)} == {"one seed supports no claim"}


@pytest.mark.parametrize("num_seeds", [3, 5])
def test_intervals_of_bits_cover_as_often_as_they_say(num_seeds: int) -> None:
    """Records are known or not, almost, and seeds differ: 95% of intervals hold the truth."""
    rng = np.random.default_rng(0)
    truth, held, num = 40 * 0.6, 0, 400
    for draw in range(num):
        share_S = np.clip(0.6 + 0.02 * rng.normal(size=num_seeds), 0, 1)
        ease_N = rng.normal(size=200)  # some records are easier, for every seed
        noise_SN = rng.normal(size=(num_seeds, 200))
        at_S = np.quantile(rng.normal(size=20_000), share_S)
        known_SN = (0.7 * ease_N + 0.714 * noise_SN < at_S[:, None]).astype(float)
        interval = hierarchical_interval(40 * known_SN + 0.25, np.arange(200), seed=draw)
        held += interval.low - 0.25 <= truth <= interval.high - 0.25
    assert 0.92 <= held / num <= 0.98
