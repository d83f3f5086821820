"""What the report says about how rows are used, and by which scope."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from moc.report.figures.losses import bits_per_byte
from moc.report.figures.scores import scores
from moc.report.figures.use import load_map
from moc.report.figures.use import memory_use as heat_maps
from moc.report.numbers.results import load_results
from moc.report.tables.cost import cost
from moc.report.tables.use import memory_use, overlap
from moc.store.journal import Journal
from tests.support.helpers_report import change_evals, row_of, study_of


def test_the_overlap_of_a_transition_is_computed_by_hand(tmp_path: Path) -> None:
    folder = study_of(tmp_path, 1, "moc")
    run = folder / "arms/moc/seed-0"
    num_chapters = 65  # the first is shared

    def load(**picks: int) -> list[int]:
        return [picks.get(f"c{chapter}", 0) for chapter in range(num_chapters)]

    def set_load(*picks: list[int]) -> Callable[[dict[str, Any]], None]:
        def change(record: dict[str, Any]) -> None:
            people, skills = (record["memory"]["sources"][name] for name in ("people", "skills"))
            people["load"], skills["load"] = ({"1": load, "3": load} for load in picks)
            if record["index"] == 2:
                record["memory"]["drift"] = {"1": 0.25, "3": 0.5}

        return change

    elsewhere = load(c9=40)  # skills is not what the earlier phase was about
    boundaries = "moc/seed-0/boundaries"
    before, after = load(c0=99, c1=30, c2=10), load(c1=10, c3=30)
    change_evals(folder, set_load(before, elsewhere), f"{boundaries}/1-pretrain")
    change_evals(folder, set_load(after, elsewhere), f"{boundaries}/2-ift")
    journal = Journal(run / "memory_use.jsonl")
    for phase, picks in (("pretrain", load(c1=5, c2=5)), ("ift", load(c0=7, c2=5, c3=15))):
        window = {"phase": phase, "step": 999, "tokens": 9, "layer": 1, "num_always": 1}
        journal.append(window | {"load": picks, "window_tokens": 9})
    journal.close()
    table = overlap(load_results(folder))
    row = row_of(table, "moc†", "0", "pretrain → ift", "1")
    assert (row["training: Jaccard"], row["training: mass"]) == ("0.333", "0.250")
    assert (row["same text: Jaccard"], row["same text: mass"]) == ("0.333", "0.250")
    assert row["address drift"] == "0.250"
    row = row_of(table, "moc†", "0", "pretrain → ift", "3")
    assert (row["training: mass"], row["address drift"]) == ("—", "0.500")


def test_a_router_that_collapsed_at_any_time_is_named(tmp_path: Path) -> None:
    folder = study_of(tmp_path, 2, "moc", "moc_segment")
    assert not any("Collapsed" in note for note in memory_use(load_results(folder)).notes)
    journal = Journal(folder / "arms/moc/seed-1/metrics.jsonl")
    for step, layers in ((41, 2.0), (42, 0.0)):
        journal.append(
            {"phase": "ift", "step": step, "tokens": 999_000}
            | {"metrics": {"ift/memory/collapsed_layers": layers}}
        )
    journal.close()
    notes = [note for note in memory_use(load_results(folder)).notes if "Collapsed" in note]
    assert len(notes) == 1
    for part in ("moc†", "seed 1", "ift", "up to 2 "):
        assert part in notes[0]


def test_scope_and_coverage_stand_beside_what_they_explain(tmp_path: Path) -> None:
    folder = study_of(tmp_path, 1, "moc", "moc_segment", "moc_token", "iso_flop")
    results = load_results(folder)
    row = row_of(cost(results), "routing")
    assert list(row.values())[1:] == [
        "sequence (non-causal)",
        "segment of 32",
        "token",
        "none",
    ]
    table = memory_use(results)
    assert "8,192 tokens" in table.caption
    row = row_of(table, "moc_token", "0", "ift", "3")
    assert row["routing"] == "token"
    lines = [
        json.loads(line)
        for line in (folder / "arms/moc_token/seed-0/memory_use.jsonl").read_text().splitlines()
    ]
    last = [line for line in lines if (line["phase"], line["layer"]) == ("ift", 3)][-1]
    assert row["coverage, %"] == f"{100 * last['coverage']:.1f}"


def test_figures_show_every_seed_and_mark_only_who_sees_later_tokens(
    tmp_path: Path,
) -> None:
    """A mean of three seeds without their spread would pass for a difference between arms."""
    pages = {}
    for seeds in (1, 3):
        folder = study_of(tmp_path / str(seeds), seeds, "moc", "moc_segment")
        results = load_results(folder)
        runs = [results.runs[arm, 0] for arm in results.arms]
        drawn = [scores(results), bits_per_byte(results), *(load_map(results, r) for r in runs)]
        pages[seeds] = {figure.name: figure for figure in drawn if figure}
    for name in ("scores", "bits_per_byte"):
        assert "Small dots: single seeds." in pages[3][name].caption
        assert "Small dots" not in pages[1][name].caption
        # one more mark for every arm, boundary and seed
        marks = [page[name].svg.count(b"<use") for page in pages.values()]
        assert marks[1] - marks[0] >= 2 * 2 * 3
    assert b"non-causal" in pages[1]["memory_use_moc"].svg
    assert b"non-causal" not in pages[1]["memory_use_moc_segment"].svg


def test_two_kinds_stand_in_one_table_and_a_missing_load_only_costs_the_map(tmp_path: Path) -> None:
    folder = study_of(tmp_path, 1, "moc_segment", "keys")
    results = load_results(folder)
    row = row_of(cost(results), "bank: rows × shape of a row")
    assert (row["moc_segment"], row["keys"]) == ("65 × 16 × 128", "256 × 128")
    assert row_of(cost(results), "rows read")["keys"] == "4 by each of 2 heads"
    table = memory_use(results)
    of_keys, of_chapters = (row_of(table, arm, "0", "ift", "1") for arm in ("keys", "moc_segment"))
    assert (of_keys["balance loss"], of_chapters["balance loss"]) == ("—", "1.100")
    assert (of_keys["effective read"], of_keys["of most"]) == ("5.5", "8")
    assert of_chapters["of most"] == "144"  # 9 chapters of 16 tokens
    assert [figure.name for figure in heat_maps(results)] == [
        "memory_use_moc_segment",
        "memory_use_keys",
    ]
    assert row_of(overlap(results), "keys", "0", "pretrain → ift", "1")["training: mass"] != "—"

    path = folder / "arms/keys/seed-0/memory_use.jsonl"
    lines = [json.loads(line) | {"load": None} for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    results = load_results(folder)
    assert row_of(memory_use(results), "keys", "0", "ift", "1") == of_keys
    assert [figure.name for figure in heat_maps(results)] == ["memory_use_moc_segment"]
    assert row_of(overlap(results), "keys", "0", "pretrain → ift", "1")["training: mass"] == "—"
