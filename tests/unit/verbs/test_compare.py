"""Several studies in one report: what is alike is compared, and nothing else is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from moc.cli import main
from moc.config.schema import StudyConfig
from moc.errors import ConfigError
from moc.report import build_report, load_results
from moc.report.numbers.controls import loss_change
from moc.report.numbers.results import Results
from moc.report.numbers.verdicts import verdicts
from moc.store.files import seal_text
from moc.verbs.compare import caveats, joined
from tests.support.fake_runs import fake_study, write_study

SMALL = (40, 20)  # steps per phase
SEEDS = (0, 1, 2)


def made(folder: Path, name: str, *arms: str, seeds: tuple[int, ...] = SEEDS) -> StudyConfig:
    study = fake_study(folder, seeds=seeds, num_steps=SMALL, arms=arms)
    study.name = name
    write_study(study)
    return study


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("originals")
    made(folder, "first", "moc", "iso_flop")
    made(folder, "second", "moc_segment", "iso_flop")
    return folder


@pytest.fixture
def folder(originals: Path, tmp_path: Path) -> Path:
    shutil.copytree(originals, tmp_path, dirs_exist_ok=True)
    return tmp_path


def join(folder: Path) -> tuple[Results, list[str]]:
    studies = {name: load_results(folder / name) for name in ("first", "second")}
    results = joined(studies, folder / "joined")
    return results, caveats(results, studies)


def test_arms_of_two_studies_are_compared_as_if_they_were_of_one(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    results, notes = join(folder)
    assert results.arms == ["first/moc", "first/iso_flop", "second/moc_segment", "second/iso_flop"]
    assert results.boundaries == ["start", "pretrain", "ift"] and notes == []
    match = results.study.arms["second/iso_flop"].iso_flop
    assert match is not None and match.target == "second/moc_segment"
    alone = load_results(
        made(tmp_path_factory.mktemp("alone"), "all", "moc", "iso_flop", "moc_segment").dir
    )
    expected = {(v.arm, v.base, v.task): (v.difference, v.words) for v in verdicts(alone)}
    found = {(v.arm, v.base, v.task): (v.difference, v.words) for v in verdicts(results)}
    for task in ("facts_choice", "facts_answer"):
        across = found["second/moc_segment", "first/iso_flop", task]
        assert across == expected["moc_segment", "iso_flop", task]
        twin, words = found["second/iso_flop", "first/iso_flop", task]  # the very same runs
        assert (twin.value, words) == (0, "not distinguishable")


def test_other_items_and_other_seeds_are_shown_but_not_compared(folder: Path) -> None:
    for path in folder.glob("second/arms/*/*/boundaries/*/samples/facts_answer.jsonl"):
        path.write_text(path.read_text().replace('"doc_hash": "', '"doc_hash": "other '))
    results, notes = join(folder)
    assert notes == [
        "facts_answer: first and second asked different items; no difference is computed."
    ]
    assert results.score("second/moc_segment", "ift", "facts_answer") is not None
    pairs = {(v.arm, v.base, v.task) for v in verdicts(results)}
    assert ("second/moc_segment", "first/iso_flop", "facts_choice") in pairs
    assert ("second/moc_segment", "first/iso_flop", "facts_answer") not in pairs
    assert ("first/moc", "first/iso_flop", "facts_answer") in pairs

    shutil.rmtree(folder / "second")
    made(folder, "second", "backbone", seeds=(7, 8))
    results, notes = join(folder)
    assert notes == [
        "first and second have no seed in common: no difference between them is computed."
    ]
    assert results.seeds == [0, 1, 2, 7, 8] and results.num_complete_seeds() == 0
    assert not [v for v in verdicts(results) if v.arm == "second/backbone"]


def test_common_items_alone_are_compared_and_their_number_is_said(folder: Path) -> None:
    for path in folder.glob("second/arms/*/*/boundaries/*/samples/facts_answer.jsonl"):
        lines = path.read_text().splitlines(keepends=True)
        path.write_text("".join(lines[:50] + [x.replace('h": "', 'h": "o') for x in lines[50:]]))
    results, notes = join(folder)
    assert notes == [
        "facts_answer: differences of first and second are over their 50 common items."
    ]
    assert ("second/moc_segment", "facts_answer") in {(v.arm, v.task) for v in verdicts(results)}


def test_losses_on_other_text_get_another_name(folder: Path) -> None:
    path = folder / "second/study.yaml"
    study = OmegaConf.load(path)
    study.data.people.num_people += 1
    OmegaConf.save(study, path)
    seal_text(path)
    results, notes = join(folder)
    assert results.sources == ["people", "skills", "people@second"]
    assert results.bits_per_byte("second/iso_flop", "ift", "people") is None
    assert results.bits_per_byte("second/iso_flop", "ift", "people@second") is not None
    assert results.taught("people@second") == "pretrain"
    cell = ("second/moc_segment", "ift", "people@second", "knockout-bank")
    assert loss_change(results, *cell) is not None  # under controls they have the same name
    assert notes == ["Text that differs between the studies: people@second."]


def test_other_phases_and_budgets_are_named(folder: Path) -> None:
    path = folder / "second/study.yaml"
    path.write_text(path.read_text().replace("ift:", "chat:").replace("327680", "655360"))
    seal_text(path)
    for boundary in folder.glob("second/arms/*/*/boundaries/2-ift"):
        evals = boundary / "evals.json"
        evals.write_text(json.dumps(json.loads(evals.read_text()) | {"boundary": "chat"}))
        boundary.rename(boundary.with_name("2-chat"))
    results, notes = join(folder)
    assert results.boundaries == ["start", "pretrain", "ift", "chat"]
    assert results.num_complete_seeds() == 3
    assert {"first has no phase chat.", "second has no phase ift."} <= set(notes)
    assert "pretrain has 327,680 tokens in first and 655,360 in second" in " ".join(notes)


def test_the_command_writes_a_report_beside_the_first_and_takes_a_baseline(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["compare", str(folder / "first"), str(folder / "second")]
    assert main([*words, "--baseline", "second/iso_flop"]) == 0
    printed = capsys.readouterr().out
    report = folder / "compare-first-second/report/report.html"
    assert printed.rstrip().endswith(f"report:  {report}")
    assert "Difference-in-differences against second/iso_flop" in printed
    assert "Difference-in-differences against first/" not in printed
    page = report.read_text()
    assert all(arm in page for arm in ("first/moc†", "second/moc_segment", "first/iso_flop"))
    assert (report.parent / "tables/differences-second--iso_flop.csv").is_file()


def test_the_page_has_the_settings_and_versions_of_all(folder: Path) -> None:
    path = folder / "second/environment.json"
    path.write_text(path.read_text().replace("0123456789abcdef", "fedcba9876543210"))
    results, _ = join(folder)
    page = build_report(results).read_text()
    assert "git commit of several versions" in page
    assert "second, git_commit: fedcba9876543210" in page
    assert "# first\nname: first\n" in page and "# second\nname: second\n" in page


def test_a_single_study_keeps_the_names_of_its_arms(folder: Path) -> None:
    results = joined({"second": load_results(folder / "second")}, folder / "alone")
    assert results.arms == ["moc_segment", "iso_flop"]
    match = results.study.arms["iso_flop"].iso_flop
    assert match is not None and match.target == "moc_segment"


def test_mistakes_are_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    first, second = str(folder / "first"), str(folder / "second")
    namesake = made(tmp_path_factory.mktemp("elsewhere"), "first", "backbone", seeds=(0,))
    fresh = fake_study(tmp_path_factory.mktemp("fresh"), num_steps=SMALL)
    write_study(fresh, runs=False)
    (folder / "none").mkdir()
    for words, said in (
        ([first, second, "--baseline", "second/isoflop"], "did you mean 'second/iso_flop'?"),
        ([first, str(namesake.dir)], "both named 'first'"),
        ([first, second, "--out", second], "a study's own folder"),
        ([first, str(folder / "nowhere")], "no 'nowhere' in "),
        ([first, str(fresh.dir)], "no boundary of this study has been evaluated yet"),
        ([first, str(folder / "none")], "is not inside a study's folder"),
    ):
        assert main(["compare", *words]) == 2
        printed = capsys.readouterr()
        assert printed.out == "" and said in printed.err and printed.err.count("\n") == 1
    assert not list(folder.glob("compare-*"))


def test_phases_in_another_order_are_refused(folder: Path) -> None:
    """What was forgotten would be read off the wrong boundaries."""
    path = folder / "second/study.yaml"
    study = OmegaConf.load(path)
    study.phases = dict(reversed(list(study.phases.items())))
    OmegaConf.save(study, path)
    seal_text(path)
    with pytest.raises(ConfigError, match="phases in another order"):
        join(folder)
