"""Typed records say what the files say, and stay silent where these do."""

from __future__ import annotations

import json
from pathlib import Path

from evals.statistics.inference import Interval
from moc.report import load_results
from tests.support.fake_runs import fake_study, write_json, write_study
from tests.support.helpers_report import study_of


def test_an_arm_has_what_study_and_plan_say(tmp_path: Path) -> None:
    folder = study_of(tmp_path, 1, "moc", "iso_flop")
    moc, iso_flop = load_results(folder).study.arms.values()
    assert (moc.causal, moc.routing, moc.bank_optimizer) == (False, "sequence", "dense")
    assert moc.shape is not None and moc.shape.memory is not None
    assert (moc.shape.memory.num_rows, moc.shape.memory.read) == (65, "8 routed + 1 shared")
    assert moc.cost.parameters.bank == 133_120 and moc.cost.steps == {"pretrain": 40, "ift": 40}
    assert iso_flop.iso_flop is not None
    assert (iso_flop.iso_flop.target, iso_flop.iso_flop.relative_error) == ("moc", -0.0012)
    phase = moc.phases["ift"]
    assert (phase.trained_tokens, phase.context_length) == (40 * 8192, 256)
    assert phase.mixture == {"skills": 1.0}
    (folder / "plan.json").unlink()
    moc, iso_flop = load_results(folder).study.arms.values()
    assert moc.cost.parameters.bank is None and moc.cost.state_bytes is None
    assert iso_flop.iso_flop is not None and iso_flop.iso_flop.relative_error is None


def test_the_shape_of_a_solved_arm_is_known_once_it_has_been_trained(tmp_path: Path) -> None:
    study = fake_study(tmp_path, num_steps=(20, 10))
    arms = load_results(write_study(study, runs=False)).study.arms
    assert arms["moc"].shape is not None and arms["iso_flop"].shape is None
    shape = load_results(write_study(study)).study.arms["iso_flop"].shape
    assert shape is not None and (shape.num_layers, shape.memory) == (6, None)


def test_what_a_run_recorded_of_causality_counts_more_than_its_settings(tmp_path: Path) -> None:
    folder = study_of(tmp_path, 1, "moc_segment")
    path = folder / "arms/moc_segment/seed-0/run.json"
    write_json(path, json.loads(path.read_text()) | {"causal": False})

    results = load_results(folder)
    assert results.label("moc_segment") == "moc_segment†"
    assert results.routing("moc_segment") == "segment† of 32"


def test_leakage_is_read_with_its_intervals(tmp_path: Path) -> None:
    folder = study_of(tmp_path, 1, "moc", "iso_flop")
    path = folder / "arms/moc/seed-0/boundaries/2-ift/evals.json"
    written = json.loads(path.read_text())["leakage"]["sources"]["people"]
    results = load_results(folder)
    found = results.runs["moc", 0].at("ift").source_leakage["people"]
    assert found.loss == {key: written[key] for key in ("full", "prefix", "counterfactual")}
    assert found.future == Interval(**written["future"])
    assert found.by_position[1].leakage == Interval(**written["by_position"][1]["leakage"])
    assert found.by_window is None
    causal = results.runs["iso_flop", 0].at("ift").source_leakage["people"]
    assert list(causal.loss) == ["full"] and causal.leakage is None
    assert results.runs["moc", 0].at("never").source_leakage == {}
