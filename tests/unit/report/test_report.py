"""The report says what the run directories hold: no number lost, moved or without its mark."""

from __future__ import annotations

import base64
import csv
import html
import json
import math
import re
import struct
from pathlib import Path
from xml.etree import ElementTree

import pytest

from moc.report import build_report, result_tables
from moc.report.figures.losses import losses, moving_mean
from moc.report.figures.use import load_ratio
from moc.report.figures.use import memory_use as heat_maps
from moc.report.numbers.results import load_results
from moc.report.tables.cost import cost
from moc.report.tables.forgetting import forgetting
from moc.report.tables.scores import deltas
from moc.store.journal import Journal
from tests.support.fake_runs import fake_study, write_json, write_run, write_study
from tests.support.helpers_report import row_of

FIGURES = ["bits_per_byte", "churn", "controls", "leakage", "learned_forgotten", "losses"]
FIGURES += ["memory_use_moc", "predictions", "r_matrix", "scores", "trajectories"]


@pytest.fixture(scope="module")
def study_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_study(fake_study(tmp_path_factory.mktemp("runs"), num_steps=(80, 40)))
    build_report(folder)
    return folder


@pytest.fixture(scope="module")
def page(study_dir: Path) -> str:
    return (study_dir / "report" / "report.html").read_text()


def cells_of(text: str, caption: str) -> dict[str, str]:
    """``arm -> rest of its line`` in the plain-text table whose caption starts with ``caption``."""
    block = next(part for part in text.split("\n\n") if part.startswith(caption))
    return {line.split()[0]: line for line in block.splitlines()[3:]}


def test_the_delta_table_is_computed_by_hand_from_evals_json(study_dir: Path) -> None:
    (table,) = deltas(load_results(study_dir))
    for arm, label in (("moc", "moc†"), ("iso_flop", "iso_flop")):
        boundaries = study_dir / "arms" / arm / "seed-0" / "boundaries"
        before, after = (
            json.loads((boundaries / name / "evals.json").read_text())["tasks"]["facts_answer"]
            for name in ("1-pretrain", "2-ift")
        )
        change = 100 * (after["value"] - before["value"])
        assert change < 0
        row = row_of(table, "facts_answer", label)
        assert (
            row["before → after, %"] == f"{100 * before['value']:.1f} → {100 * after['value']:.1f}"
        )
        assert row["change, points"].startswith(f"−{-change:.1f} [")


def test_forgetting_is_the_best_earlier_boundary_minus_the_last(study_dir: Path) -> None:
    """facts_choice of moc: 25, 83, 74 %; skills_answer: 0, 0, 42 %."""
    table = forgetting(load_results(study_dir))
    for task, lost in (("facts_choice", "+9.0"), ("facts_answer", "+19.0")):
        row = row_of(table, f"{task}, since pretrain", "moc†")
        assert row["forgetting"].startswith(f"{lost} [")
        assert row["backward transfer"].startswith(f"−{lost[1:]} [")  # the best was when taught
    row = row_of(table, "skills_answer, since ift", "moc†")
    assert row["forgetting"].startswith("−42.0 [") and row["backward transfer"] == "—"
    with (study_dir / "report/tables/forgetting.csv").open() as file:
        rows = {(r["arm"], r["evaluation"]): r for r in csv.DictReader(file)}
    assert float(rows["moc", "facts_answer"]["forgetting"]) == pytest.approx(0.71 - 0.52)
    folder = study_dir / "arms/moc/seed-0/boundaries"
    start, before, after = (
        json.loads((folder / name / "evals.json").read_text())["bits_per_byte"]["people"]
        for name in ("0-start", "1-pretrain", "2-ift")
    )
    assert rows["moc", "people"]["unit"] == "bits_per_byte"
    lost = float(rows["moc", "people"]["forgetting"])
    assert lost == pytest.approx(after - min(start, before))
    assert len(rows) == 3 * (3 + 2)  # arms, tasks and sources


def test_forgetting_is_of_finished_runs_and_averaged_over_seeds(tmp_path: Path) -> None:
    study = fake_study(tmp_path, seeds=(0, 1, 2), num_steps=(20, 10))
    folder = write_study(study)
    run = folder / "arms/moc/seed-1/boundaries/2-ift/evals.json"
    record = json.loads(run.read_text())
    record["tasks"]["facts_choice"]["value"] = 0.55  # best before: 0.83 and the seed's 0.02
    write_json(run, record)
    (folder / "arms/moc/seed-2/boundaries/2-ift/evals.json").unlink()
    row = row_of(forgetting(load_results(folder)), "facts_choice, since pretrain", "moc†")
    # of 9 and 30; the item records are not of that evaluation, so that seeds alone tell how sure
    assert re.fullmatch(r"≈ \+19\.5 \[.*\] \(2 of 3 seeds\)", row["forgetting"])


def test_the_interval_of_a_score_is_wilsons_where_its_items_were_not_kept(tmp_path: Path) -> None:
    """With them, it knows that four questions are about one person, and is wider."""
    folder = write_study(fake_study(tmp_path, num_steps=(20, 10)))
    with_items = load_results(folder).score("moc", "pretrain", "facts_answer")
    for path in folder.glob("arms/moc/seed-0/boundaries/1-pretrain/samples/*.jsonl"):
        path.unlink()
    score = load_results(folder).score("moc", "pretrain", "facts_answer")
    # 142 of 200: the formula as in Wilson (1927), equation for the two roots
    n, p, z = 200, 0.71, 1.959964
    roots = [
        (2 * n * p + z * z + sign * z * math.sqrt(z * z + 4 * n * p * (1 - p))) / (2 * (n + z * z))
        for sign in (-1, 1)
    ]
    assert score is not None and with_items is not None
    assert (score.low, score.high) == pytest.approx(roots, abs=1e-6)
    assert with_items.value == score.value
    assert with_items.low < score.low and with_items.high > score.high


def test_scores_near_their_baseline_are_marked_and_others_are_not(study_dir: Path) -> None:
    text = result_tables(study_dir)
    assert "≈ 25.0 [" in text  # facts_choice before training, chance 25, majority 28
    assert "≈ 0.5 [" in text  # skills before they were taught
    assert "≈ 83.0" not in text and "≈ 42.0" not in text
    assert "≈ not distinguishable from its baseline" in text


def test_every_table_with_a_non_causal_arm_says_so(study_dir: Path, page: str) -> None:
    for text in (result_tables(study_dir), page):
        assert re.search(r"\bmoc\b(?!†)", re.sub(r"<pre>.*?</pre>", "", text, flags=re.S)) is None
    assert page.count('<p class="note">† non-causal routing') == page.count("<table>")
    assert "moc†: non-causal." in page
    assert "including later tokens" in page


def test_one_seed_supports_no_claim_and_three_do(tmp_path: Path, page: str) -> None:
    assert "One seed supports no claim" in page
    three = fake_study(tmp_path, seeds=(0, 1, 2), num_steps=(20, 10))
    folder = write_study(three)
    assert load_results(folder).caution() is None
    assert "supports no claim" not in result_tables(folder)
    (folder / "arms/moc/seed-2/boundaries/2-ift/evals.json").unlink()
    assert "2 of 3 seeds are complete" in result_tables(folder)


def test_means_over_seeds_are_plain_means(tmp_path: Path) -> None:
    folder = write_study(fake_study(tmp_path, seeds=(0, 1, 2), num_steps=(20, 10)))
    values = [
        json.loads((folder / f"arms/moc/seed-{seed}/boundaries/2-ift/evals.json").read_text())
        for seed in (0, 1, 2)
    ]
    mean = sum(record["tasks"]["facts_answer"]["value"] for record in values) / 3
    score = load_results(folder).score("moc", "ift", "facts_answer")
    assert score is not None and score.value == pytest.approx(mean)


def test_a_partial_study_shows_what_there_is_and_a_dash_for_the_rest(tmp_path: Path) -> None:
    study = fake_study(tmp_path, num_steps=(80, 40))
    folder = write_study(study, runs=False)
    assert "—" in cells_of(result_tables(folder), "Training loss")["backbone"]
    write_run(study, "moc", 0, boundaries=2, status="running")
    (table,) = deltas(load_results(folder))
    row = row_of(table, "facts_choice", "moc†")
    assert (row["before → after, %"], row["change, points"]) == ("83.0 → —", "—")
    assert row_of(table, "facts_choice", "iso_flop")["before → after, %"] == "— → —"
    page = build_report(folder).read_text()
    assert "running, 2 of 3 boundaries" in page and "missing" in page


def test_a_failed_run_with_a_nan_loss_does_not_break_the_report(tmp_path: Path) -> None:
    study = fake_study(tmp_path, num_steps=(80, 40))
    folder = write_study(study)
    journal = Journal(folder / "arms/backbone/seed-0/metrics.jsonl")
    journal.append(
        {"phase": "ift", "step": 41, "tokens": 999_000, "metrics": {"ift/train/loss": math.nan}}
    )
    assert "nan" not in result_tables(folder)
    assert losses(load_results(folder)) is not None


def test_the_page_is_one_file_that_loads_nothing(page: str) -> None:
    assert re.findall(r'(?:src|href)="(?!data:)', page) == []
    assert "url(" not in page and "@import" not in page and "<script" not in page
    images = re.findall(r'src="data:image/svg\+xml;base64,([^"]+)"', page)
    assert len(images) == len(FIGURES)
    for image in images:
        assert ElementTree.fromstring(base64.b64decode(image)).tag.endswith("svg")


def test_the_page_is_well_formed_and_escapes_what_users_wrote(tmp_path: Path) -> None:
    study = fake_study(tmp_path, num_steps=(20, 10))
    study.description = "<script>alert(1)</script> & more"
    page = build_report(write_study(study)).read_text()
    assert "<script>" not in page
    assert html.escape(study.description) in page
    for tag in ("table", "figure", "details", "tr", "div", "p"):
        assert len(re.findall(rf"<{tag}[ >]", page)) == page.count(f"</{tag}>"), tag


def test_the_page_names_costs_commit_and_configuration(page: str) -> None:
    for expected in (
        "1,060,482",
        "−0.12% of moc†",
        "0123456789ab",
        "tokens_per_step: 8192",
        "3.11.9",
    ):
        assert expected in page


def test_figures_and_tables_are_files_as_well(study_dir: Path) -> None:
    figures = sorted(path.name for path in (study_dir / "report/figures").iterdir())
    assert figures == [f"{name}.png" for name in FIGURES]
    for name in figures:
        content = (study_dir / "report/figures" / name).read_bytes()
        width, _ = struct.unpack(">II", content[16:24])
        assert content.startswith(b"\x89PNG") and width >= 5 * 150
    with (study_dir / "report/tables/scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * 3 * 3  # arms, boundaries, tasks
    found = next(
        row
        for row in rows
        if (row["arm"], row["boundary"], row["task"]) == ("moc", "ift", "facts_answer")
    )
    assert (float(found["value"]), found["causal"]) == (0.52, "False")


def test_terminal_tables_fit_a_terminal(tmp_path: Path) -> None:
    study = fake_study(tmp_path, num_steps=(20, 10))
    study.arms["a_rather_long_name_of_an_arm"] = study.arms["backbone"]
    folder = write_study(study)
    assert max(len(line) for line in result_tables(folder).splitlines()) <= 100


def test_a_folder_without_a_study_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no study\.yaml"):
        build_report(tmp_path)


def test_many_chapters_and_a_collapsed_router_can_be_drawn(tmp_path: Path) -> None:
    study = fake_study(tmp_path, num_steps=(40, 40))
    memory = study.arms["moc"].model.memory
    assert memory is not None
    memory.chapters.num_chapters, memory.chapters.num_routed = 4097, 64
    folder = write_study(study)
    chapters = Journal(folder / "arms/moc/seed-0/memory_use.jsonl")
    for layer in (1, 3):
        chapters.append(
            {"phase": "ift", "step": 999, "tokens": 9, "layer": layer, "load": [0] * 4097}
            | {"window_tokens": 1, "num_always": 1, "shared_mass": None, "dead_share": 1.0}
            | {"load_max_over_mean": math.nan, "entropy": 0.0, "kl_to_uniform": 0.0}
        )
    results = load_results(folder)
    (drawn,) = heat_maps(results)
    assert drawn.name == "memory_use_moc"


def test_smoothing_keeps_ends_and_straight_lines() -> None:
    line = [3.0 - 0.25 * step for step in range(12)]
    assert moving_mean(line, 5) == pytest.approx(line)
    assert moving_mean([0, 0, 5, 0, 0], 5) == pytest.approx([0, 5 / 3, 1, 5 / 3, 0])


def test_load_is_relative_to_uniform_use() -> None:
    assert load_ratio([5, 5, 5]) == [1, 1, 1]
    assert load_ratio([0, 30]) == [0, 2]
    assert load_ratio([0, 0]) == [0, 0]


def test_the_shape_shown_is_the_one_that_was_trained(tmp_path: Path) -> None:
    study = fake_study(tmp_path, num_steps=(20, 10))
    folder = write_study(study)
    trained = folder / "arms/iso_flop/seed-0/boundaries/2-ift/model.json"
    write_json(trained, {"num_layers": 7, "dim": 128, "mlp_dim": 400, "memory": None})
    row = row_of(cost(load_results(folder)), "layers × width, MLP width")
    assert row["iso_flop"] == "7 × 128, 400"
