"""``moc fit`` on ladders of known laws: what was put in is found, or refused with its reason."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from moc.cli import main
from moc.report import load_results
from moc.report.sections import SECTIONS
from moc.store.files import seal_text
from tests.support.fake_ladder import EXPONENT, FLOOR, MATCH, made


@pytest.fixture(scope="module")
def ladder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("ladder"))


@pytest.fixture
def study(ladder: Path, tmp_path: Path) -> Path:
    shutil.copytree(ladder, tmp_path / "climb")
    return tmp_path / "climb"


@pytest.fixture
def fitted(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, list[dict]]]:
    def fitted(folder: Path, *words: str) -> tuple[int, str, list[dict]]:
        code = main(["fit", str(folder), *words])
        said = capsys.readouterr()
        file = folder / "report" / "tables" / "scaling.csv"
        rows = list(csv.DictReader(file.open())) if file.is_file() else []
        return code, said.out + said.err, rows

    return fitted


def test_what_was_put_in_is_found(study: Path, fitted: Callable) -> None:
    code, text, rows = fitted(study)
    assert code == 0 and "Loss on people after pretrain" in text
    assert [(row["over"], row["arm"]) for row in rows] == [
        (over, arm) for over in ("FLOPs", "seconds") for arm in ("moc", "dense")
    ]
    for row in rows:
        assert row["baseline"] == "dense" and row["refused"] == ""
        for key, truth in (("exponent", EXPONENT), ("floor", FLOOR)):
            assert float(row[f"{key}_low"]) < truth < float(row[f"{key}_high"])
        assert float(row["exponent"]) == pytest.approx(EXPONENT, rel=0.15)
    over_flops, _, over_seconds, _ = rows
    for row, truth in ((over_flops, MATCH), (over_seconds, MATCH / 2)):
        match = [float(row[f"compute_to_match{end}"]) for end in ("_low", "", "_high")]
        assert match[0] < truth < match[2] and match[1] == pytest.approx(truth, rel=0.1)
    assert over_flops["extrapolated"] == "True" and " (e)" in text
    points = list(csv.DictReader((study / "report/tables/scaling_points.csv").open()))
    assert len(points) == 5 * 2 * 3
    assert (study / "report/figures/scaling.png").read_bytes()[1:4] == b"PNG"


def test_against_another_baseline_it_is_the_other_way_round(study: Path, fitted: Callable) -> None:
    _, text, rows = fitted(study, "--baseline", "moc")
    assert float(rows[1]["compute_to_match"]) == pytest.approx(1 / MATCH, rel=0.1)
    assert rows[0]["compute_to_match"] == "" and "the baseline" in text


def test_a_report_shows_it_too(study: Path) -> None:
    results = load_results(study)
    found = [make(results) for _, make in SECTIONS["Loss over training compute"]]
    assert [product.name for product in found] == ["scaling", "scaling", "scaling_points"]


def test_three_sizes_are_refused(tmp_path: Path, fitted: Callable) -> None:
    code, text, rows = fitted(made(tmp_path, sizes=3))
    assert code == 0 and "3 sizes" in text and "no fit" in text
    assert all("needs 4" in row["refused"] and row["exponent"] == "" for row in rows)


def test_seeds_that_leave_the_exponent_open_are_refused(tmp_path: Path, fitted: Callable) -> None:
    _, text, rows = fitted(made(tmp_path, sizes=4, noise=0.1))
    assert "leave the exponent open" in text
    assert all(row["compute_to_match"] == "" for row in rows if row["refused"])


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--source", "poeple"), "--source: no 'poeple'; did you mean 'people'?"),
        (("--phase", "tune"), "--phase: no 'tune'"),
        (("--baseline", "dens"), "--baseline: no 'dens'"),
    ],
)
def test_a_name_that_is_not_there(
    study: Path, fitted: Callable, words: tuple[str, ...], line: str
) -> None:
    code, text, _ = fitted(study, *words)
    assert code == 2 and line in text and text.count("\n") == 1


def test_a_study_without_a_ladder_has_nothing_to_fit(study: Path, fitted: Callable) -> None:
    config = study / "study.yaml"
    lines = [line for line in config.read_text().splitlines() if " size:" not in line]
    config.write_text("\n".join(lines) + "\n")
    seal_text(config)
    code, text, _ = fitted(study)
    assert code == 2 and "ladder" in text
