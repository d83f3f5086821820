"""What the report makes of item records, controls, probes and times, computed by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from moc.report.numbers.effects import churned, controlled, retention
from moc.report.numbers.results import load_results
from moc.report.tables.controls import controls, earlier_controls
from moc.report.tables.cost import cost
from moc.report.tables.forgetting import churn, forgetting
from moc.report.tables.knowledge import knowledge
from moc.report.tables.probes import savings
from moc.report.tables.scores import status
from moc.store.files import seal_text
from moc.store.journal import Journal
from tests.support.fake_runs import fake_study, write_json, write_study
from tests.support.helpers_report import change_evals, row_of, set_right, share, study_of


def test_items_are_paired_by_their_hash_and_not_by_their_place(tmp_path: Path) -> None:
    folder = study_of(tmp_path, 1, "moc_segment", "iso_flop")
    set_right(folder, "moc_segment", "pretrain", "facts_answer", share(60))
    set_right(folder, "moc_segment", "ift", "facts_answer", share(60))
    path = folder / "arms/moc_segment/seed-0/boundaries/2-ift/samples/facts_answer.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(reversed(lines)))
    found = churned(load_results(folder), "moc_segment", "facts_answer", "pretrain", "ift")
    assert found is not None and found.by_seed == {0: (0, 0, 1.0)}


def test_items_that_one_side_lacks_are_left_out(tmp_path: Path) -> None:
    """100 items before, the first 50 of them after: 40 right of 50, and then 30."""
    folder = study_of(tmp_path, 1, "moc_segment", "iso_flop")
    before = share(40, 50) + share(50, 50)
    set_right(folder, "moc_segment", "pretrain", "facts_answer", before)
    set_right(folder, "moc_segment", "ift", "facts_answer", share(30, 50))
    items = load_results(folder).items("facts_answer")
    common = items.common(("moc_segment", "pretrain"), ("moc_segment", "ift"))
    assert common is not None and [v.mean() for v in common.values] == [0.8, 0.6]


def test_churn_counts_both_ways_and_tests_exactly(tmp_path: Path) -> None:
    """10 of 100 lost and 2 gained: McNemar's p is 2 (1 + 12 + 66) / 2^12."""
    folder = study_of(tmp_path, 1, "moc_segment", "iso_flop")
    set_right(folder, "moc_segment", "pretrain", "facts_answer", share(60))
    after = [0] * 10 + [1] * 50 + [1] * 2 + [0] * 38
    set_right(folder, "moc_segment", "ift", "facts_answer", after)
    table = churn(load_results(folder))
    row = row_of(table, "facts_answer", "pretrain → ift", "moc_segment")
    assert row["right → wrong, %"].startswith("10.0 [")
    assert row["wrong → right, %"].startswith("2.0 [")
    assert row["change, points"].startswith("−8.0 [")
    (raw,) = (r for r in table.raw if (r["task"], r["arm"]) == ("facts_answer", "moc_segment"))
    assert (raw["right_to_wrong"], raw["wrong_to_right"]) == (10, 2)
    assert raw["mcnemar_p"] == pytest.approx(2 * (1 + 12 + 66) / 2**12)


def test_retention_is_above_the_baseline_or_undefined(tmp_path: Path) -> None:
    """Majority 28 %: (50 - 28) / (90 - 28); 27 % was never above it."""
    folder = study_of(tmp_path, 3, "moc_segment", "iso_flop")
    set_right(folder, "moc_segment", "pretrain", "facts_choice", share(90))
    set_right(folder, "moc_segment", "ift", "facts_choice", share(50))
    set_right(folder, "iso_flop", "pretrain", "facts_choice", share(27))
    set_right(folder, "iso_flop", "ift", "facts_choice", share(27))
    results = load_results(folder)
    kept = retention(results, "moc_segment", "facts_choice")
    assert kept is not None and kept.value == pytest.approx(22 / 62)
    # the delta method by hand: the error of (a - r b) / b, over 100 independent items
    r, b = 22 / 62, 0.62
    error = [((i < 50) - 0.28 - r * ((i < 90) - 0.28)) / b for i in range(100)]
    half = 1.984 * math.sqrt(sum(e * e for e in error) / 99 / 100)
    assert kept.high - kept.low == pytest.approx(2 * half, rel=0.06)
    table = forgetting(results)
    row = row_of(table, "facts_choice, since pretrain", "moc_segment")
    assert row["retention, %"].startswith("35.5 [") and row["taught → last, %"] == "90.0 → 50.0"
    row = row_of(table, "facts_choice, since pretrain", "iso_flop")
    assert row["retention, %"] == "undefined" and row["taught → last, %"] == "≈ 27.0 → ≈ 27.0"


def test_forward_transfer_is_what_earlier_phases_did(tmp_path: Path) -> None:
    """skills, taught by ift: 10 of 100 right before it, none at the start."""
    folder = study_of(tmp_path, 1, "moc_segment", "iso_flop")
    set_right(folder, "moc_segment", "start", "skills_answer", share(0))
    set_right(folder, "moc_segment", "pretrain", "skills_answer", share(10))
    table = forgetting(load_results(folder))
    row = row_of(table, "skills_answer, since ift", "moc_segment")
    assert row["forward transfer"].startswith("+10.0 [")
    row = row_of(table, "facts_answer, since pretrain", "moc_segment")
    assert row["forward transfer"] == "—"  # nothing came before
    study = OmegaConf.load(folder / "study.yaml")
    mixture = {"people": 0.5, "skills": 0.5}  # as joint training resolves it
    OmegaConf.update(study, "arms.moc_segment.phases.pretrain.mixture", mixture)
    OmegaConf.save(study, folder / "study.yaml")
    seal_text(folder / "study.yaml")
    table = forgetting(load_results(folder))
    assert row_of(table, "skills_answer, since ift", "moc_segment")["forward transfer"] == "—"
    assert row_of(table, "skills_answer, since ift", "iso_flop")["forward transfer"] != "—"


def test_a_source_of_one_arm_alone_is_taught_when_that_arm_trains_on_it(tmp_path: Path) -> None:
    """And one that nothing trains on was never taught: no table says since when."""
    folder = study_of(tmp_path, 1, "moc_segment", "iso_flop")
    study = OmegaConf.load(folder / "study.yaml")
    study.phases.pretrain.mixture = {"skills": 1.0}
    for arm in ("moc_segment", "iso_flop"):
        study.arms[arm].phases.pretrain.mixture = {"skills": 1.0}
    OmegaConf.save(study, folder / "study.yaml")
    seal_text(folder / "study.yaml")
    results = load_results(folder)
    assert results.taught_task("facts_choice") is None
    tables = (knowledge(results), forgetting(results), savings(results))
    assert not [row for table in tables for row in table.rows if "facts" in row[0]]
    study.arms.moc_segment.phases.ift.mixture = {"people": 1.0}
    OmegaConf.save(study, folder / "study.yaml")
    seal_text(folder / "study.yaml")
    assert load_results(folder).taught_task("facts_choice") == "ift"


def test_scores_of_different_items_are_not_compared_without_records(tmp_path: Path) -> None:
    folder = study_of(tmp_path, 1, "moc_segment", "iso_flop")
    for path in folder.glob("arms/*/*/boundaries/*/samples/**/*.jsonl"):
        path.unlink()
    cell = ("moc_segment", "facts_answer", "ift", "knockout-bank")
    assert controlled(load_results(folder), *cell) is None  # 100 items of 200

    def same(record: dict[str, Any]) -> None:
        record["tasks"]["facts_answer"]["num_items"] = 100

    change_evals(folder, same)
    assert controlled(load_results(folder), *cell) is not None


def test_a_control_is_compared_on_the_items_that_it_scored(tmp_path: Path) -> None:
    """70 of 100 right; of the first 50, 45 as it is and 20 without the bank."""
    folder = study_of(tmp_path, 3, "moc_segment", "iso_flop")
    right = share(45, 50) + share(25, 50)
    set_right(folder, "moc_segment", "ift", "facts_answer", right)
    control = "knockout-bank"
    set_right(folder, "moc_segment", "ift", "facts_answer", share(20, 50), control=control)
    results = load_results(folder)
    (before,), table = earlier_controls(results), controls(results)
    assert table is not None
    assert (before.name, table.name) == ("controls-pretrain", "controls-ift")
    row = row_of(table, "facts_answer, %", "moc_segment")
    assert row["as it is"] == "90.0" and row[control].startswith("−50.0 [")
    assert "bank_swap-pretrain" in row and "bank_swap-pretrain" not in before.header
    assert not [r for r in table.rows if r[1] == "iso_flop"]  # it has no bank
    raw = next(r for r in table.raw if (r["task"], r["control"]) == ("facts_answer", control))
    assert (raw["as_it_is"], raw["under_control"]) == pytest.approx((0.9, 0.4))
    row = row_of(table, "people, bits/byte", "moc_segment")
    assert row[control].startswith("+0.650")  # what fake_boundaries adds


def probe_of(
    folder: Path, scores: list[float], *, seeds: tuple[int, ...] = (0, 1, 2), **changes: Any
) -> None:
    for seed in seeds:
        points = [
            {"tokens": 1000 * i, "tasks": {"facts_answer": {"value": value, "num_items": 100}}}
            for i, value in enumerate(scores)
        ]
        record = {"probe": "relearn", "boundary": "ift", "index": 2, "tokens_per_step": 1000}
        path = folder / f"arms/moc_segment/seed-{seed}/probes/relearn/2-ift/probe.json"
        write_json(path, record | {"points": points, "elapsed_sec": 1.0} | changes)


def follow(folder: Path, num_items: int) -> None:
    """``num_items`` of evals.in_phase, and a score that rises to 1 over the first phase."""
    study = OmegaConf.load(folder / "study.yaml")
    OmegaConf.update(study, "evals.in_phase.num_items", num_items)
    OmegaConf.save(study, folder / "study.yaml")
    seal_text(folder / "study.yaml")
    end = 40 * 8192
    for seed in range(3):
        path = folder / f"arms/moc_segment/seed-{seed}/metrics.jsonl"
        path.unlink(missing_ok=True)
        journal = Journal(path)
        for tokens, value in ((0, 0.0), (end // 2, 0.6), (end, 1.0)):
            metrics = {"trajectory/facts_answer": value}
            journal.append({"phase": "pretrain", "step": 0, "tokens": tokens, "metrics": metrics})
        journal.close()


def test_savings_and_recovery_of_a_probe(tmp_path: Path) -> None:
    """80 % when taught, 40 % left, 50, 70 and 90 % after 1, 2 and 3 thousand tokens: 80 % after
    2.5 thousand; learning it first took 20 steps of 8,192 tokens, three quarters of them."""
    folder = study_of(tmp_path, 3, "moc_segment", "iso_flop")
    set_right(folder, "moc_segment", "pretrain", "facts_answer", share(80))
    set_right(folder, "moc_segment", "ift", "facts_answer", share(40))
    probe_of(folder, [0.4, 0.5, 0.7, 0.9])
    end = 40 * 8192
    follow(folder, 100)
    row = row_of(savings(load_results(folder)), "relearn after ift", "facts_answer", "moc_segment")
    assert (row["taught, %"], row["before → after probe, %"]) == ("80.0", "40.0 → 90.0")
    assert row["recovered, %"] == "125" and row["tokens to regain"] == "2,500"
    assert row["savings, %"] == f"{100 * (1 - 2500 / (0.75 * end)):.0f}"
    follow(folder, 50)  # other items: the first 50, where the probe asked 100
    row = row_of(savings(load_results(folder)), "relearn after ift", "facts_answer")
    assert (row["tokens to regain"], row["savings, %"]) == ("2,500", "—")


def test_savings_are_of_all_seeds_and_not_of_those_that_got_there(tmp_path: Path) -> None:
    folder = study_of(tmp_path, 3, "moc_segment", "iso_flop")
    set_right(folder, "moc_segment", "pretrain", "facts_answer", share(80))
    set_right(folder, "moc_segment", "ift", "facts_answer", share(4))  # majority 3.5 %
    follow(folder, 100)
    probe_of(folder, [0.04, 0.9])
    probe_of(folder, [0.04, 0.5], seeds=(1,))
    table = savings(load_results(folder))
    row = row_of(table, "relearn after ift", "facts_answer")
    assert row["tokens to regain"] == "not regained by 1 of 3 seeds" and row["savings, %"] == "—"
    assert row["before → after probe, %"] == "≈ 4.0 → 76.7"
    raw = [entry for entry in table.raw if entry["task"] == "facts_answer"]
    assert [entry["tokens"] is None for entry in raw] == [False, True, False]


def test_a_probe_that_never_gets_there_says_so(tmp_path: Path) -> None:
    folder = study_of(tmp_path, 3, "moc_segment", "iso_flop")
    set_right(folder, "moc_segment", "pretrain", "facts_answer", share(80))
    set_right(folder, "moc_segment", "ift", "facts_answer", share(40))
    probe_of(folder, [0.4, 0.6])
    row = row_of(savings(load_results(folder)), "relearn after ift", "facts_answer")
    assert (row["recovered, %"], row["tokens to regain"]) == ("50", "not regained")
    set_right(folder, "moc_segment", "pretrain", "facts_answer", share(3))  # majority 3.5 %
    row = row_of(savings(load_results(folder)), "relearn after ift", "facts_answer")
    assert (row["recovered, %"], row["savings, %"]) == ("undefined", "undefined")


def test_cost_counts_time_and_memory(tmp_path: Path) -> None:
    """40 + 40 steps of 8,192 tokens at 4,096 tokens a second; three boundaries of 3.2 s, and two
    evaluations of 1.7 s in phases."""
    folder = study_of(tmp_path, 1, "moc_segment", "iso_flop")
    path = folder / "arms/moc_segment/seed-0/metrics.jsonl"
    path.unlink()
    journal = Journal(path)
    for phase in ("pretrain", "ift"):
        metrics = {f"{phase}/train/tokens_per_sec": 4096.0, f"{phase}/eval/elapsed_sec": 1.7}
        metrics[f"{phase}/train/data_wait"] = 0.0123
        journal.append({"phase": phase, "step": 5, "tokens": 5, "metrics": metrics})
    journal.close()
    table = cost(load_results(folder))
    assert row_of(table, "training time per seed, s")["moc_segment"] == "160"
    assert row_of(table, "evaluation time per seed, s")["moc_segment"] == "13"
    assert row_of(table, "planned memory, activation, MB")["moc_segment"] == "143"
    waits = row_of(table, "waiting for data, % of the time, ift")
    assert (waits["moc_segment"], waits["iso_flop"]) == ("1.2", "—")  # older runs did not log it
    assert not [row for row in table.rows if "peak" in row[0]]  # a CPU does not say
    info = folder / "arms/moc_segment/seed-0/run.json"
    write_json(info, json.loads(info.read_text()) | {"peak_memory_bytes": 3 * 2**20})
    row = row_of(cost(load_results(folder)), "measured peak memory, MB")
    assert (row["moc_segment"], row["iso_flop"]) == ("3", "—")
    study = OmegaConf.load(folder / "study.yaml")  # an arm whose second phase is half as long
    study.arms.moc_segment.phases.ift.tokens = 20 * 8192
    OmegaConf.save(study, folder / "study.yaml")
    seal_text(folder / "study.yaml")
    results = load_results(folder)
    assert row_of(cost(results), "training time per seed, s")["moc_segment"] == "120"
    assert results.phase_ends("moc_segment") == [("pretrain", 40 * 8192), ("ift", 60 * 8192)]
    assert results.phase_ends()[-1] == ("ift", 80 * 8192)


def test_phases_that_a_sibling_had_trained_are_named(tmp_path: Path) -> None:
    folder = study_of(tmp_path, 1, "moc", "moc_segment")
    shared = {"arm": "moc", "phases": ["pretrain"]}
    write_json(folder / "arms/moc_segment/seed-0/shared.json", shared)
    results = load_results(folder)
    row = row_of(status(results), "moc_segment")
    assert row["seed 0"] == "complete; pretrain as moc†"
    assert any("moc_segment: pretrain as moc†" in note for note in cost(results).notes)
    assert row_of(status(results), "moc†")["seed 0"] == "complete"


def test_tasks_of_three_phases_know_when_they_were_taught(tmp_path: Path) -> None:
    study = fake_study(tmp_path, num_steps=(20, 10, 10), arms=("moc_segment", "iso_flop"))
    results = load_results(write_study(study))
    assert {task: results.taught_task(task) for task in results.tasks} == {
        "facts_choice.people": "pretrain",
        "facts_answer.people": "pretrain",
        "skills_answer": "ift",
        "facts_choice.others": "more",
        "facts_answer.others": "more",
    }
    assert len(results.earlier_tasks) == 3


def test_a_stock_task_counts_from_the_first_phase(tmp_path: Path) -> None:
    folder = study_of(tmp_path, 1, "moc_segment", "iso_flop")

    def stock(record: dict[str, Any]) -> None:
        record["tasks"] = {"boolq": record["tasks"]["facts_choice"] | {"source": None}}

    change_evals(folder, stock)
    assert load_results(folder).taught_task("boolq") == "pretrain"
