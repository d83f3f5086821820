"""What goes into a paper: LaTeX tables, marks on what is not distinguishable, figures."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moc.report import build_report
from moc.report.figures.controls import controls
from moc.report.figures.course import learned_forgotten, trajectories
from moc.report.figures.drawing import Figure, wrapped
from moc.report.figures.matrix import churn, predictions, r_matrix
from moc.report.figures.probes import probes
from moc.report.figures.scores import scores
from moc.report.numbers.results import Results, load_results
from moc.report.sections import all_tables
from moc.report.tables.forgetting import forgetting
from moc.report.tables.layout import Table
from tests.support.fake_runs import fake_study, write_study
from tests.support.helpers_report import change_evals, row_of, set_right, share, study_of


@pytest.fixture(scope="module")
def three_phases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    arms = ("moc", "moc_segment", "iso_flop")
    study = fake_study(
        tmp_path_factory.mktemp("runs"),
        seeds=(0, 1, 2),
        num_steps=(80, 40, 40),
        arms=arms,
        probes=("relearn",),
    )
    return write_study(study)


@pytest.fixture(scope="module")
def results(three_phases: Path) -> Results:
    return load_results(three_phases)


def test_latex_escapes_what_it_would_take_for_a_command() -> None:
    rows = [["50% of a_b & c", "≈ −1 [2, 3]"], ["x", r"\end{document}"], ["y", "m† ~ {z}^#$"]]
    text = Table("R-a/b_c", "100% → _", ["", "n"], rows, notes=["† & ≈"]).to_latex()
    assert r"\caption{100\% $\rightarrow$ \_}" in text
    assert r"50\% of a\_b \& c & $\approx$ $-$1 [2, 3] \\" in text
    assert r"\textbackslash{}end\{document\}" in text and r"\end{document}" not in text
    assert r"m$\dagger$ \textasciitilde{} \{z\}\textasciicircum{}\#\$" in text
    assert r"\label{tab:R-a-b-c}" in text and r"\raggedright $\dagger$ \& $\approx$" in text
    rules = [text.index(rf"\{name}rule") for name in ("top", "mid", "bottom")]
    assert rules == sorted(rules) and "%" not in re.sub(r"\\%|^%.*|\{!\}\{%$", "", text, flags=re.M)


def test_latex_says_a_repeated_key_once_and_keeps_groups_apart() -> None:
    rows = [["a", "one", "1"], ["a", "two", "2"], ["b", "one", "3"]]
    lines = Table("t", "", ["task", "arm", "n"], rows, 2).to_latex().splitlines()
    start = lines.index(r"a & one & 1 \\")
    assert lines[start + 1 : start + 4] == [r" & two & 2 \\", r"\addlinespace", r"b & one & 3 \\"]
    assert r"\begin{tabular}{llr}" in lines


def test_a_cell_with_a_bracket_is_not_the_length_of_the_break_before_it() -> None:
    assert r"{}[1, 2] & x \\" in Table("t", "", ["a", "b"], [["[1, 2]", "x"]]).to_latex()


def test_every_table_is_a_csv_and_a_tex_file(three_phases: Path, results: Results) -> None:
    build_report(results)
    folder = three_phases / "report/tables"
    names = {path.name for path in folder.iterdir()}
    tables = all_tables(results)
    assert names == {f"{name}.{kind}" for name in tables for kind in ("csv", "tex")}
    for expected in ("differences-iso_flop", "forgetting", "churn", "savings"):
        assert expected in tables
    for path in folder.glob("*.tex"):  # what LaTeX can read, to the last character
        text = path.read_text()
        assert not re.search(r"[−≈†→×—]|(?<!\\)[&_#](?!.*\\\\)", text.replace(" & ", "")), path.name
    page = (three_phases / "report/report.html").read_text()
    assert page.index("What can be said") < page.index("Who forgets less") < page.index("R of moc†")
    for tag in ("details", "ul", "li", "table", "figure"):
        assert len(re.findall(rf"<{tag}[ >]", page)) == page.count(f"</{tag}>"), tag


def test_whatever_reaches_its_baseline_is_marked_in_every_table(tmp_path: Path) -> None:
    """27 of 100 right where always the same answer scores 28 %; 60 are clearly more."""
    study = fake_study(
        tmp_path,
        seeds=(0, 1, 2),
        num_steps=(40, 40),
        arms=("moc_segment", "iso_flop"),
        probes=("relearn",),
    )
    folder = write_study(study)
    for path in folder.glob("arms/moc_segment/*/probes/*/*/probe.json"):
        record = json.loads(path.read_text())
        for point, value in zip(record["points"], (0.27, 0.6, 0.6, 0.6, 0.6), strict=True):
            point["tasks"]["facts_choice"] |= {"value": value, "num_items": 100}
        path.write_text(json.dumps(record))
    for boundary, right in (("pretrain", 60), ("ift", 27)):
        set_right(folder, "moc_segment", boundary, "facts_choice", share(right))
    set_right(folder, "moc_segment", "ift", "facts_choice", share(27), control="knockout-bank")
    with_levels = set()
    for name, table in all_tables(load_results(folder)).items():
        cells = [cell for row in table.rows if "moc_segment" in (*row, name[2:]) for cell in row]
        levels = [cell for cell in cells if re.search(r"(?<![\d.+−-])27\.0(?!\d)", cell)]
        with_levels |= {name} if levels else set()
        assert all("≈ 27.0" in cell for cell in levels), name
        assert not any("≈ 60.0" in cell for cell in cells), name
        assert not levels or any("≈" in note for note in table.notes), name
    expected = {"scores", "R-moc_segment", "forgetting", "delta-pretrain-ift", "savings"}
    assert with_levels >= expected | {"controls-ift"}
    row = row_of(forgetting(load_results(folder)), "facts_choice, since pretrain", "moc_segment")
    assert row["taught → last, %"] == "60.0 → ≈ 27.0"
    assert row["retention, %"].startswith("≈ −3.1 [")


FIGURES: list[Callable[[Results], Figure | None]] = [
    r_matrix,
    scores,
    trajectories,
    learned_forgotten,
    churn,
    predictions,
    controls,
]


def test_figures_need_their_records_and_nothing_else(tmp_path: Path) -> None:
    """A study from before these records has fewer figures, and a report."""
    folder = study_of(tmp_path, 1, "moc_segment", "iso_flop")

    def forget(record: dict[str, Any]) -> None:
        record.pop("controls")
        for score in record["tasks"].values():
            for key in ("source", "predictions", "targets", "centred", "bits_per_byte"):
                score.pop(key)

    change_evals(folder, forget)
    for path in folder.glob("arms/*/*/metrics.jsonl"):
        lines = [line for line in path.read_text().splitlines() if "trajectory" not in line]
        path.write_text("".join(line + "\n" for line in lines))
    for path in folder.glob("arms/*/*/boundaries/*/samples/*.jsonl"):
        path.unlink()
    old = load_results(folder)
    drawn = {draw.__name__ for draw in FIGURES if draw(old)}
    assert drawn == {"r_matrix", "scores", "learned_forgotten"}
    assert old.taught_task("skills_answer") == "ift" and probes(old) == []
    assert not [name for name in all_tables(old) if name.startswith(("controls", "knowledge"))]


def test_the_matrix_prints_every_score_with_its_interval(results: Results) -> None:
    figure = r_matrix(results)
    assert figure is not None
    printed = set(re.findall(r"<!-- (.*?) -->", figure.svg.decode()))
    for arm in results.arms:
        for boundary in results.boundaries:
            for task in results.tasks:
                score = results.score(arm, boundary, task)
                assert score is not None
                near = "≈ " if score.near else ""
                assert f"{near}{100 * score.value:.1f}" in printed
                assert f"[{100 * score.low:.0f}, {100 * score.high:.0f}]" in printed


def test_every_seed_is_a_point_of_what_was_kept_against_what_was_learned(
    results: Results, tmp_path: Path
) -> None:
    """Three earlier tasks, three arms, three seeds, and the means; nothing for an arm that had not
    learned."""
    figure = learned_forgotten(results)
    assert figure is not None
    assert figure.svg.count(b"<use") >= 3 * 3 * (3 + 1)
    folder = study_of(tmp_path, 1, "moc_segment")
    for task in ("facts_choice", "facts_answer"):
        set_right(folder, "moc_segment", "pretrain", task, share(3))
    assert learned_forgotten(load_results(folder)) is None


def test_without_a_new_task_what_was_learned_is_a_loss(tmp_path: Path) -> None:
    """Stock benchmarks alone: the last phase teaches none of them, but a source of text."""
    folder = study_of(tmp_path, 1, "moc_segment")

    def stock(record: dict[str, Any]) -> None:
        record["tasks"] = {"boolq": record["tasks"]["facts_choice"] | {"source": None}}

    change_evals(folder, stock)
    figure = learned_forgotten(load_results(folder))
    assert figure is not None and b"skills after ift (bits per byte)" in figure.svg


def test_probes_and_trajectories_have_a_panel_per_task(results: Results) -> None:
    (figure,) = probes(results)
    assert figure.name == "probe_relearn_more"
    assert b"facts_answer.people" in figure.svg and b"facts_answer.others" not in figure.svg
    figure = trajectories(results)
    assert figure is not None
    for task in results.tasks:
        assert task.encode() in figure.svg


def test_one_option_for_everything_shows_as_one_bar(tmp_path: Path) -> None:
    folder = study_of(tmp_path, 1, "moc_segment")

    def always_yes(record: dict[str, Any]) -> None:
        score = record["tasks"]["facts_choice"]
        score |= {"predictions": {"no": 0, "yes": 200}, "targets": {"no": 76, "yes": 124}}

    change_evals(folder, always_yes)
    figure = predictions(load_results(folder))
    assert figure is not None
    printed = re.findall(r"<!-- (.*?) -->", figure.svg.decode())
    assert printed.count("100") >= 3 and "yes" in printed and "no" in printed


def test_long_names_are_broken_where_words_end() -> None:
    assert wrapped("moc_frozen_bank") == "moc_frozen_\nbank"
    assert wrapped("moc†") == "moc†"
