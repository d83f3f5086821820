"""What the report says of leakage, and what stays of an advantage, computed by hand."""

from __future__ import annotations

import base64
import csv
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import scipy.stats

from moc.report import build_report, result_tables
from moc.report.numbers.results import load_results
from moc.report.sections import all_tables
from moc.report.tables.leakage import advantage, leakage, leakage_choice
from moc.report.tables.losses import earlier_loss
from moc.report.tables.scores import scores
from moc.report.tables.use import memory_use, overlap
from tests.support.helpers_report import change_evals, row_of, study_of

ARMS = ("moc", "moc_segment", "moc_token", "iso_flop", "backbone")
T_OF_3_SEEDS = 4.302653  # Student's t at 0.975, 2 degrees of freedom, from a printed table


@pytest.fixture(scope="module")
def five_arms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = study_of(tmp_path_factory.mktemp("runs"), 3, *ARMS)
    build_report(folder)
    return folder


def set_source(folder: Path, arm: str, seed: int, **values: Any) -> None:
    """Of ``people`` after ``pretrain``."""
    change_evals(
        folder,
        lambda record: record["leakage"]["sources"]["people"].update(values),
        f"{arm}/seed-{seed}/boundaries/1-pretrain",
    )


def satterthwaite_half(own: float, common: float) -> float:
    """Half an interval from the variance over three seeds and one that is known."""
    total = own + common
    return float(scipy.stats.t.ppf(0.975, 2 * (total / own) ** 2)) * math.sqrt(total)


def test_leakage_is_over_windows_with_one_seed_and_over_seeds_with_more(tmp_path: Path) -> None:
    folder = study_of(tmp_path, 3, "moc", "iso_flop")
    for seed, leaked in enumerate((0.06, 0.08, 0.10)):
        part = {"value": leaked, "low": leaked, "high": leaked}
        set_source(folder, "moc", seed, leakage=part, full=2.0, prefix=2.0 + leaked)
    table = leakage(load_results(folder))
    row = row_of(table, "people", "pretrain", "moc†")
    half = T_OF_3_SEEDS * 0.02 / math.sqrt(3)
    assert row["leakage"] == f"+0.080 [{0.08 - half:.3f}, {0.08 + half:.3f}]"
    assert (row["full"], row["prefix-only"]) == ("2.000", "2.080")
    assert "95% t-interval over seeds and windows" in table.caption

    one = study_of(tmp_path / "one", 1, "moc", "iso_flop")
    part = {"value": 0.004, "low": -0.002, "high": 0.009}
    set_source(one, "moc", 0, leakage=part)
    table = leakage(load_results(one))
    found = row_of(table, "people", "pretrain", "moc†")["leakage"]
    assert found == "+0.004 [−0.002, 0.009] not distinguishable"
    assert "95% interval over windows" in table.caption and "t-interval" not in table.caption
    assert any("One seed supports no claim" in note for note in table.notes)


def test_leakage_in_multiple_choice_is_in_points(tmp_path: Path) -> None:
    """facts_choice of moc: 74 % on the context, 80 % on the answer too, in fake_routing."""
    row = row_of(
        leakage_choice(load_results(study_of(tmp_path, 1, "moc"))), "facts_choice", "ift", "moc†"
    )
    assert (row["routed on context"], row["on the answer too"]) == ("74.0", "80.0")
    assert row["leakage, points"] == "+6.0 [2.0, 10.0]"


def test_the_advantage_is_baseline_minus_arm_paired_by_seed(tmp_path: Path) -> None:
    folder = study_of(tmp_path, 3, *ARMS)
    for seed, base in enumerate((1.80, 1.90, 2.00)):
        set_source(folder, "iso_flop", seed, full=base)
        set_source(folder, "moc", seed, full=base - (0.10, 0.11, 0.12)[seed], prefix=base)
        set_source(folder, "moc_segment", seed, full=base - (0.10, 0.08, -0.04)[seed])
        set_source(folder, "backbone", seed, full=base + 0.05)
    table = advantage(load_results(folder))
    column = "advantage over iso_flop"

    half = T_OF_3_SEEDS * 0.01 / math.sqrt(3)  # of the differences, not of the levels
    row = row_of(table, "people", "pretrain", "moc†", "sequence†")
    assert row[column] == f"+0.110 [{0.11 - half:.3f}, {0.11 + half:.3f}]"
    assert row["bits/token"] == "1.790"
    row = row_of(table, "people", "pretrain", "moc†", "prefix only")
    assert row[column] == "0.000"  # alike in all seeds: that says nothing of other seeds

    spread = math.sqrt(((0.10 - 0.14 / 3) ** 2 + (0.08 - 0.14 / 3) ** 2 + (0.26 / 3) ** 2) / 2)
    half = T_OF_3_SEEDS * spread / math.sqrt(3)
    row = row_of(table, "people", "pretrain", "moc_segment", "segment of 32")
    expected = f"+0.047 [−{half - 0.14 / 3:.3f}, {half + 0.14 / 3:.3f}] not distinguishable"
    assert row[column] == expected
    assert row_of(table, "people", "pretrain", "backbone")[column].startswith("−0.050 [−0.050,")
    assert row_of(table, "people", "pretrain", "iso_flop")[column] == "baseline"


def test_the_answer_is_said_in_words(tmp_path: Path) -> None:
    """Of the boundary after the phase that teaches the source, whatever comes later."""
    folder = study_of(tmp_path, 3, "moc", "moc_segment", "iso_flop")
    for arm, values in (
        ("iso_flop", {"full": 2.0}),
        ("moc", {"full": 1.9, "prefix": 2.03}),
        ("moc_segment", {"full": 2.01}),
    ):
        change_evals(
            folder,
            lambda record, values=values: record["leakage"]["sources"]["people"].update(values),
            f"{arm}/seed-*/boundaries/1-pretrain",
        )
    notes = advantage(load_results(folder)).notes
    assert (
        "people after pretrain, bits per token: moc† is 0.100 better than iso_flop as trained, "
        "0.030 worse without leakage." in notes
    )
    assert (
        "people after pretrain, bits per token: moc_segment, which is causal, is 0.010 worse "
        "than iso_flop." in notes
    )


def test_windows_that_all_seeds_share_widen_the_advantage(tmp_path: Path) -> None:
    """Differences 0.1, 0.2, 0.3 over seeds; per token of either window 0.0 and 0.4 on average."""
    folder = study_of(tmp_path, 3, "moc_segment", "iso_flop")
    for seed, gap in enumerate((0.1, 0.2, 0.3)):
        counts = {"num_tokens": [5, 5]}
        near, far = 5 * (gap - 0.2), 5 * (gap + 0.2)
        mine = counts | {"full": [8.0, 8.0]}
        base = counts | {"full": [8.0 + near, 8.0 + far]}
        same = {"num_tokens": 10, "tokens": "abc"}
        set_source(folder, "moc_segment", seed, full=1.6, per_window=mine, **same)
        set_source(folder, "iso_flop", seed, full=1.6 + gap, per_window=base, **same)
    row = row_of(advantage(load_results(folder)), "people", "pretrain", "moc_segment")
    common = 2 * (1.0 + 1.0) / 100  # residuals of 5 * 0.2 bits in two windows of ten tokens
    half = satterthwaite_half(0.01 / 3, common)
    expected = f"+0.200 [−{half - 0.2:.3f}, {half + 0.2:.3f}] not distinguishable"
    assert row["advantage over iso_flop"] == expected
    set_source(folder, "iso_flop", 1, tokens="other")  # of other tokens: seed 1 has no pair
    row = row_of(advantage(load_results(folder)), "people", "pretrain", "moc_segment")
    assert "(2 of 3 seeds)" in row["advantage over iso_flop"]


def test_forgetting_against_the_baseline_is_paired_by_seed(tmp_path: Path) -> None:
    """In bits: the loss after ift minus that after pretrain; a non-causal arm twice."""
    folder = study_of(tmp_path, 3, "moc", "iso_flop")

    def set_losses(arm: str, seed: int, boundary: str, **values: float) -> None:
        change_evals(
            folder,
            lambda record: record["leakage"]["sources"]["people"].update(values),
            f"{arm}/seed-{seed}/boundaries/{boundary}",
        )

    for seed, lost in enumerate((0.5, 0.6, 0.7)):
        set_losses("iso_flop", seed, "1-pretrain", full=1.0)
        set_losses("iso_flop", seed, "2-ift", full=1.0 + lost)
        set_losses("moc", seed, "1-pretrain", full=0.9, prefix=1.0)
        more = (0.1, 0.2, 0.3)[seed]
        set_losses("moc", seed, "2-ift", full=0.9 + lost + more, prefix=1.4)
    table = earlier_loss(load_results(folder))
    half = T_OF_3_SEEDS * 0.1 / math.sqrt(3)
    people = "people, bits/token, since pretrain"
    row = row_of(table, people, "moc†", "sequence†")
    assert row["more than iso_flop"] == f"≈ +0.200 [−{half - 0.2:.3f}, {half + 0.2:.3f}]"
    assert row["taught → last"] == "0.900 → 1.700"
    row = row_of(table, people, "moc†", "prefix only")
    assert row["forgotten"] == "+0.400"  # the same in all three seeds: no interval
    assert row_of(table, people, "iso_flop")["more than iso_flop"] == "baseline"
    assert not [r for r in table.rows if r[0].startswith("skills")]  # the last phase teaches it


def test_one_seed_gives_the_bare_difference(tmp_path: Path) -> None:
    folder = study_of(tmp_path, 1, "moc", "iso_flop")
    set_source(folder, "iso_flop", 0, full=1.8)
    set_source(folder, "moc", 0, full=1.7)
    table = advantage(load_results(folder))
    row = row_of(table, "people", "pretrain", "moc†", "sequence†")
    assert row["advantage over iso_flop"] == "+0.100"
    assert any("One seed supports no claim" in note for note in table.notes)


def test_losses_on_other_tokens_are_not_compared(tmp_path: Path) -> None:
    folder = study_of(tmp_path, 3, "moc", "iso_flop")
    for seed in (0, 2):
        set_source(folder, "moc", seed, num_tokens=77)
    set_source(folder, "iso_flop", 1, full=1.8)
    set_source(folder, "moc", 1, full=1.7)
    row = row_of(advantage(load_results(folder)), "people", "pretrain", "moc†", "sequence†")
    assert row["advantage over iso_flop"] == "+0.100 (1 of 3 seeds)"


def test_every_number_of_a_non_causal_arm_carries_its_mark(five_arms: Path) -> None:
    page = (five_arms / "report/report.html").read_text()
    for text in (result_tables(five_arms), re.sub(r"<pre>.*?</pre>", "", page, flags=re.S)):
        assert re.search(r"\bmoc\b(?!†)", text) is None
        assert "moc_segment†" not in text and "moc_token†" not in text
    assert page.count('<p class="note">† non-causal routing') == page.count("<table>")
    figures = re.findall(r'alt="([^"]+)" src="data:image/svg\+xml;base64,([^"]+)"', page)
    drawing = next(base64.b64decode(image).decode() for alt, image in figures if "Leakage" in alt)
    assert "<!-- moc† -->" in drawing and "† non-causal routing" in drawing
    assert "moc_segment" not in drawing  # nothing leaks to what sees no later tokens
    for name in ("leakage", "leakage_choice"):
        with (five_arms / f"report/tables/{name}.csv").open() as file:
            assert {row["causal"] for row in csv.DictReader(file)} == {"False"}


def test_the_csv_files_keep_every_seed_unrounded(five_arms: Path) -> None:
    record = json.loads((five_arms / "arms/moc/seed-2/boundaries/2-ift/evals.json").read_text())
    source = record["leakage"]["sources"]["skills"]
    with (five_arms / "report/tables/leakage.csv").open() as file:
        rows = [r for r in csv.DictReader(file) if (r["seed"], r["boundary"]) == ("2", "ift")]
    found = next(row for row in rows if row["source"] == "skills")
    assert float(found["mismatch_high"]) == source["mismatch"]["high"]
    with (five_arms / "report/tables/advantage.csv").open() as file:
        rows = [r for r in csv.DictReader(file) if (r["seed"], r["boundary"]) == ("2", "ift")]
    found = next(
        r for r in rows if (r["arm"], r["source"], r["routing"]) == ("moc", "skills", "prefix")
    )
    baseline = json.loads(
        (five_arms / "arms/iso_flop/seed-2/boundaries/2-ift/evals.json").read_text()
    )["leakage"]["sources"]["skills"]["full"]
    assert float(found["advantage"]) == pytest.approx(baseline - source["prefix"])


def test_terminal_tables_hold_the_new_ones_and_fit(five_arms: Path) -> None:
    text = result_tables(five_arms)
    assert "Leakage: bits per token gained" in text
    assert max(len(line) for line in text.splitlines()) <= 100


def test_runs_from_before_these_records_still_make_a_report(tmp_path: Path) -> None:
    folder = study_of(tmp_path, 1, "moc", "iso_flop")

    def forget(record: dict[str, Any]) -> None:
        del record["leakage"], record["memory"]

    change_evals(folder, forget)
    for path in folder.glob("arms/*/seed-0/memory_use.jsonl"):
        # without the checksums that it would not fit
        left_out = r'"coverage(_tokens)?":[^,]+,|,"crc":"[^"]*"'
        path.write_text(re.sub(left_out, "", path.read_text()))
    page = build_report(folder).read_text()
    assert "<h2>Leakage" not in page and "Loss in bits per token against" not in page
    results = load_results(folder)
    assert row_of(memory_use(results), "moc†", "0", "ift", "1")["coverage, %"] == "—"
    row = row_of(overlap(results), "moc†", "0", "pretrain → ift", "1")
    assert row["training: mass"] != "—"
    assert (row["same text: mass"], row["address drift"]) == ("—", "—")


def test_what_is_not_measured_yet_is_a_dash(tmp_path: Path) -> None:
    folder = study_of(tmp_path, 1, "moc", "iso_flop")
    for arm in ("moc", "iso_flop"):
        (folder / f"arms/{arm}/seed-0/boundaries/2-ift/evals.json").unlink()
    results = load_results(folder)
    all_tables(results)
    assert set(row_of(leakage(results), "people", "ift", "moc†").values()) >= {"—"}
    row = row_of(advantage(results), "people", "ift", "moc†", "prefix only")
    assert (row["bits/token"], row["advantage over iso_flop"]) == ("—", "—")


def test_causal_studies_have_no_section_on_leakage(tmp_path: Path) -> None:
    folder = study_of(tmp_path, 1, "moc_segment", "iso_flop")
    page = build_report(folder).read_text()
    assert "<h2>Leakage" not in page and "†" not in page
    assert "Loss against the iso-FLOP baseline" in page
    assert not (folder / "report/figures/leakage.png").exists()


def test_without_an_iso_flop_arm_there_is_no_advantage_to_show(tmp_path: Path) -> None:
    folder = study_of(tmp_path, 1, "moc", "backbone")
    assert "advantage" not in all_tables(load_results(folder))


def test_a_task_routed_on_the_answer_too_is_shown_for_arms_that_have_it(tmp_path: Path) -> None:
    folder = study_of(tmp_path, 1, "moc", "iso_flop")

    def both(record: dict[str, Any]) -> None:
        record["tasks"]["facts_choice.full"] = record["tasks"]["facts_choice"] | {"value": 0.9}

    change_evals(folder, both, "moc/seed-0/boundaries/*")
    table = scores(load_results(folder))
    assert [row[1] for row in table.rows if row[0] == "facts_choice.full"] == ["moc†"]
    assert any(".full: the answer being scored took part" in note for note in table.notes)
