"""What a plan says it can see, from stated defaults or from an earlier study."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import pytest

from evals.statistics.power import Variances, seeds_needed, smallest_detectable
from moc.cli import main
from moc.config.load import load_study
from moc.config.schema import StudyConfig
from moc.plan.power import BITS_PER_TOKEN, DEFAULTS, POINTS, Basis, Unit, render_sights, sights
from moc.report.numbers.power import bases_of
from moc.report.numbers.results import load_results
from tests.support.helpers_report import set_right, share, study_of

STUDY = """
name: seen
seeds: [0, 1, 2]
model: {preset: tiny}
data: {people: {kind: facts}, skills: {kind: skills}}
phases: {pretrain: {mixture: {people: 1}}, tune: {mixture: {skills: 1}}}
arms: {moc: {}, backbone: {model: {memory: null}}}
evals: {tasks: [facts_answer], num_items: 100, leakage_windows: 16}
"""


@pytest.fixture
def study(tmp_path: Path) -> StudyConfig:
    (tmp_path / "seen.yaml").write_text(STUDY)
    return load_study(tmp_path / "seen.yaml")


def text_of(study: StudyConfig, *bases: Basis, points: float | None = None) -> str:
    return " ".join(" ".join(render_sights(sights(study, bases, points=points), "x")).split())


def test_a_plan_states_what_would_be_seen_and_what_half_of_it_needs(study: StudyConfig) -> None:
    """Variances of seeds alone: 4.30 standard errors are the limit, and t beyond it in 80 % from a
    shift of 6.0 on (tables of the noncentral t, 2 degrees of freedom)."""
    variances = Variances(0.05**2, 0.0, 0.0)
    text = text_of(study, Basis("facts_answer", POINTS, "seeds", variances))
    assert "80% power (5%, two-sided, one test by itself; variances: x)" in text
    least = 100 * smallest_detectable(variances, 3, 1)
    assert least == pytest.approx(6.0 * 5 / math.sqrt(3), rel=0.1)
    needed = seeds_needed(least / 200, variances, 1)
    assert (
        f"facts_answer: {least:.1f} points with 3 seeds; {least / 2:.1f} points would need" in text
    )
    assert text.endswith(f"need {needed} seeds")


def test_a_wanted_difference_is_of_scores(study: StudyConfig) -> None:
    task, loss = sights(study, points=30.0)
    assert (task.wanted, task.seeds_needed) == (30.0, 3) and task.number == 100
    assert loss.wanted == loss.detectable / 2 and loss.number == 16
    assert sights(study, points=0.5)[0].seeds_needed is None
    assert "0.5 points would need more than 1,000 seeds, or more items" in text_of(
        study, DEFAULTS[0], points=0.5
    )


def test_a_unit_needs_only_a_name(study: StudyConfig) -> None:
    bits = Basis("knowledge", Unit("bits", digits=0), "seeds", Variances(100.0**2, 0.0, 0.0))
    (sight,) = sights(study, [bits])
    assert f"knowledge: {sight.detectable:.0f} bits with 3 seeds" in text_of(study, bits)


def test_bits_per_token_are_stated_in_nats_too(study: StudyConfig) -> None:
    (sight,) = sights(study, DEFAULTS[1:])
    assert sight.basis.unit == BITS_PER_TOKEN
    bits, nats = sight.detectable, sight.detectable * math.log(2)
    assert f"loss: {bits:.3f} bits per token ({nats:.3f} nats) with 3 seeds and 16 windows" in (
        text_of(study, DEFAULTS[1])
    )


def test_one_seed_cannot_tell(study: StudyConfig) -> None:
    three = sights(study)[0]
    study.seeds = [0]
    assert "a task: one seed supports no claim; " in text_of(study, DEFAULTS[0])
    (one, _) = sights(study)
    assert one.to_json()["detectable"] is None and one.detectable == three.detectable


def test_what_is_not_measured_or_compared_has_no_figure(study: StudyConfig) -> None:
    study.evals.num_items = None  # all there are, and nobody knows how many
    task, _ = sights(study)
    assert math.isinf(task.number) and task.to_json()["number"] is None
    assert "with 3 seeds and any number of items" in text_of(study, DEFAULTS[0])
    study.evals.leakage_windows = 0
    assert [sight.basis.name for sight in sights(study)] == ["a task"]
    study.evals.tasks = []
    assert sights(study) == []
    study.evals.leakage_windows = 16
    del study.arms["backbone"]
    assert sights(study) == [] and render_sights([], "x") == []


def earlier(folder: Path) -> Path:
    """Three seeds, two tasks: one learned by both arms, one by neither."""
    made, rng = study_of(folder, 3, "moc_segment", "iso_flop"), random.Random(0)
    for arm in ("moc_segment", "iso_flop"):
        for boundary, kept in (("pretrain", 0.9), ("ift", 0.6)):
            set_right(made, arm, boundary, "facts_choice", share(3))
            for seed in range(3):
                right = [int(rng.random() < kept) for _ in range(80)]
                set_right(made, arm, boundary, "facts_answer", right, seed=seed)
    return made


def test_an_earlier_study_gives_the_variances(
    tmp_path: Path, study: StudyConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = earlier(tmp_path / "runs")
    bases = bases_of(load_results(folder))
    task, *losses = bases
    assert (task.name, task.unit, task.number) == ("facts_answer", POINTS, 80)
    # all noise: 2 x (0.9 x 0.1 + 0.6 x 0.4) = 0.66 of each item by each seed
    assert task.variances.rest == pytest.approx(0.66, rel=0.25)
    assert losses and all(basis.name.startswith("loss on ") for basis in losses)
    words = ["plan", str(tmp_path / "seen.yaml"), "--like", str(folder), "--detect", "20"]
    assert main(words) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert str(folder) in printed
    least = 100 * smallest_detectable(task.variances, 3, 100)
    assert f"facts_answer: {least:.1f} points with 3 seeds and 100 items; 20.0 points" in printed
    assert main([*words, "--json"]) == 0
    power = json.loads(capsys.readouterr().out)["power"]
    assert power["variances"] == str(folder)
    assert power["differences"][0]["detectable"] == pytest.approx(least)


def test_a_study_of_one_seed_tells_no_variance(
    tmp_path: Path, study: StudyConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = study_of(tmp_path / "runs", 1, "moc_segment", "iso_flop")
    assert main(["plan", str(tmp_path / "seen.yaml"), "--like", str(folder)]) == 2
    printed = capsys.readouterr()
    assert "its variances are not known" in printed.err and printed.out == ""
