"""Evaluations while a phase trains observe it, and change nothing but the clock."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import moc.study
from moc.callbacks.in_phase import is_due
from moc.config.schema import StudyConfig
from moc.store.journal import Record, read
from moc.study import run_study
from tests.support.child_tasks import NoTracker
from tests.support.helpers_training import tiny_study

EVERY = 600  # tokens: steps 3, 5 and 8 of 256 tokens
TASKS = ["facts_choice", "facts_answer"]
BOUNDARIES = ["0-start", "1-facts", "2-skills"]


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, StudyConfig]:
    """The same study without and with evaluations inside its phases."""
    options = [f"evals.tasks={json.dumps(TASKS)}", "evals.num_items=8"]
    options += ["evals.controls.knockouts=[]", "evals.controls.bank_swap=[]"]
    options += ["model.memory.chapters.router.bias_rate=0.01", "phases.facts.revive_every_steps=2"]
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(moc.study, "Tracker", NoTracker)
        patch.setattr(moc.study, "build_report", lambda folder: folder)
        for name, every in (("without", 0), ("with", EVERY)):
            more = [f"evals.in_phase.every_tokens={every}", "evals.in_phase.num_items=3"]
            found[name] = tiny_study(tmp_path_factory.mktemp(name), *options, *more)
            run_study(found[name])
    return found


def run_dir(study: StudyConfig, arm: str) -> Path:
    return study.dir / f"arms/{arm}/seed-0"


def journal(study: StudyConfig, arm: str) -> list[Record]:
    return read(run_dir(study, arm) / "metrics.jsonl")


@pytest.mark.parametrize("arm", ["moc", "backbone"])
def test_weights_are_the_same_to_the_bit(studies: dict[str, StudyConfig], arm: str) -> None:
    for boundary in BOUNDARIES:
        one, other = (
            (run_dir(study, arm) / "boundaries" / boundary / "model.safetensors").read_bytes()
            for study in studies.values()
        )
        assert one == other, boundary


@pytest.mark.parametrize("arm", ["moc", "backbone"])
def test_every_loss_and_every_count_is_the_same(studies: dict[str, StudyConfig], arm: str) -> None:
    kept = []
    for study in studies.values():
        lines = [
            {key: value for key, value in record["metrics"].items() if "/train/" in key}
            for record in journal(study, arm)
        ]
        timeless = [
            {
                k: v
                for k, v in line.items()
                if not k.endswith(("tokens_per_sec", "mfu", "data_wait"))
            }
            for line in lines
        ]
        chapters = read(run_dir(study, arm) / "memory_use.jsonl")
        counts = [{k: v for k, v in line.items() if k != "time"} for line in chapters]
        kept.append(([line for line in timeless if line], counts))
    assert kept[0] == kept[1]


def test_points_lie_where_they_were_asked_for_and_at_boundaries(
    studies: dict[str, StudyConfig],
) -> None:
    """Every 600 tokens of a phase, on the study's token axis; a phase's last step is a boundary."""
    points = [
        (record["phase"], record["tokens"])
        for record in journal(studies["with"], "moc")
        if "trajectory/facts_choice" in record["metrics"]
    ]
    inside = {
        ("facts", 3 * 256),
        ("facts", 5 * 256),
        ("skills", 2048 + 3 * 256),
        ("skills", 2048 + 5 * 256),
    }
    boundaries = {("start", 0), ("facts", 2048), ("skills", 2048 + 1536)}
    assert sorted(points) == sorted(inside | boundaries)
    assert not any(
        name.startswith("trajectory/")
        for record in journal(studies["without"], "moc")
        for name in record["metrics"]
    )


def test_a_trajectory_goes_through_the_boundarys_own_items(
    studies: dict[str, StudyConfig],
) -> None:
    """The subset is the first items of those that boundaries score, so both must agree on it."""
    for index, boundary in enumerate(BOUNDARIES):
        folder = run_dir(studies["with"], "moc") / "boundaries" / boundary
        for task in TASKS:
            lines = (folder / f"samples/{task}.jsonl").read_text().splitlines()
            expected = sum(json.loads(line)["correct"] for line in lines[:3]) / 3
            (found,) = [
                record["metrics"][f"trajectory/{task}"]
                for record in journal(studies["with"], "moc")
                if record["tokens"] == (0, 2048, 3584)[index]
                and f"trajectory/{task}" in record["metrics"]
            ]
            assert found == pytest.approx(expected)


def test_its_time_is_logged_apart_and_is_no_training_time(
    studies: dict[str, StudyConfig],
) -> None:
    """An evaluation takes far longer than a step here: counted in, the rate of its steps would
    fall far below the others'."""
    records = journal(studies["with"], "moc")
    spent = [
        record["metrics"]["facts/eval/elapsed_sec"]
        for record in records
        if "facts/eval/elapsed_sec" in record["metrics"]
    ]
    assert len(spent) == 2 and min(spent) > 0
    rates = {
        record["step"]: record["metrics"]["facts/train/tokens_per_sec"]
        for record in records
        if "facts/train/tokens_per_sec" in record["metrics"]
    }
    after = [256 / rates[step] for step in (4, 6)]  # seconds of the steps that follow one
    assert max(after) < min(spent)


@pytest.mark.parametrize(
    ("tokens_per_step", "every", "due"),
    [
        (256, 600, [3, 5, 8]),
        (256, 256, [1, 2, 3, 4, 5, 6, 7, 8]),
        (256, 100, [1, 2, 3, 4, 5, 6, 7, 8]),
        (256, 1024, [4, 8]),
    ],
)
def test_steps_at_or_after_a_multiple(tokens_per_step: int, every: int, due: list[int]) -> None:
    assert [step for step in range(1, 9) if is_due(step, tokens_per_step, every)] == due
