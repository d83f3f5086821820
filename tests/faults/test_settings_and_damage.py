"""Changed settings and damaged files: refused or passed over, never mixed into a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.helpers_runs import Moc, check_same, complaint, contents, run_dir
from tests.support.helpers_training import write_tiny_study


def names_the_change(log: str, override: str) -> bool:
    """One line with the setting that differs, its new value and the way out."""
    key, _, value = override.partition("=")
    said = complaint(log)
    known = f"{key.removeprefix('arms.moc.')}: " in said and f", now {value}" in said
    return known and "was trained with other settings" in said and "another name" in said


@pytest.mark.usefixtures("finished")
@pytest.mark.parametrize(
    "override",
    [
        "phases.skills.optimizer.bank.lr=0.5",
        "phases.facts.schedule.warmup_steps=1",
        "data.skills.num_examples=150",  # every phase, through the tokenizer
        "arms.moc.model.memory.chapters.num_routed=3",
        "trainer.precision=bf16-mixed",
        "tokenizer.vocab_size=410",
    ],
)
def test_a_finished_run_of_other_settings_is_refused_before_anything_is_touched(
    moc: Moc, tmp_path: Path, override: str
) -> None:
    """settings changed. Kept: all files, which would describe another model than they hold; a line
    names what changed."""
    before = contents(tmp_path)
    code, log = moc(override)
    assert code == 2, log
    assert names_the_change(log, override), log
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("stop", "override"),
    [
        ({"at": "after step", "phase": "facts", "step": 4}, "phases.facts.tokens=2304"),
        ({"at": "while evaluating", "boundary": 0}, "model.dim=48"),  # only the start is there
    ],
    ids=["a checkpoint", "the start"],
)
def test_half_a_run_of_other_settings_is_refused(
    moc: Moc, tmp_path: Path, stop: dict[str, Any], override: str
) -> None:
    """Otherwise half a run would be of one model and half of another."""
    moc(stop=stop)
    before = contents(tmp_path)
    code, log = moc(override)
    assert code == 2, log
    assert names_the_change(log, override), log
    assert contents(tmp_path) == before


def test_settings_that_change_no_weight_may_change(
    moc: Moc, tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    moc(stop={"at": "after step", "phase": "facts", "step": 5})
    code, log = moc("trainer.checkpoint_every_steps=2", "trainer.num_workers=1")
    assert code == 0, log
    check_same(tmp_path, undisturbed)


TWO_SEEDS = ("seeds: [0]", "seeds: [0, 1]")
LONGER = ("  moc: {}\n", "  moc: {}\n  longer: {phases: {facts: {tokens: 70_000}}}\n")


def rewrite(folder: Path, *changes: tuple[str, str]) -> None:
    """Another study in the same YAML."""
    path = write_tiny_study(folder)
    text = path.read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)


@pytest.mark.usefixtures("finished")
@pytest.mark.parametrize(
    ("changes", "named", "folder"),
    [
        ([("  moc: {}\n", "  memory: {}\n")], "arm 'moc'", "arms/moc"),
        ([("seeds: [0]", "seeds: [1]")], "seed 0 of arm 'moc'", "arms/moc/seed-0"),
        (
            [("  skills:\n    tokens", "  tune:\n    tokens")],
            "another phase of arm 'moc'",
            "2-skills",
        ),
    ],
    ids=["another arm", "another seed", "another phase"],
)
def test_a_study_that_would_hide_a_run_is_refused(
    moc: Moc, tmp_path: Path, changes: list[tuple[str, str]], named: str, folder: str
) -> None:
    """settings changed; duplicate names. Kept: all files; a line names the run that the report
    would not show, and what to do."""
    rewrite(tmp_path, *changes)
    before = contents(tmp_path)
    code, log = moc("--arms", "backbone")
    assert code == 2, log
    said = complaint(log)
    assert f"{folder} holds {named}, which this study does not name" in said
    assert "another name (name=...)" in said
    assert contents(tmp_path) == before


@pytest.mark.usefixtures("finished")
def test_arms_and_seeds_can_be_added(moc: Moc, tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    rewrite(tmp_path, TWO_SEEDS, ("  moc: {}\n", "  moc: {}\n  bare: {model: {memory: null}}\n"))
    code, log = moc("--arms", "bare", "--seeds", "1")
    assert code == 0, log
    assert (tmp_path / "runs/tiny/arms/bare/seed-1/boundaries/2-skills").is_dir()
    check_same(tmp_path, undisturbed)


@pytest.mark.usefixtures("finished")
def test_an_arm_that_needs_more_of_the_data_is_refused(moc: Moc, tmp_path: Path) -> None:
    """All arms share one order of the data, and the new one would make it another."""
    rewrite(tmp_path, LONGER)
    before = contents(tmp_path)
    code, log = moc()
    assert code == 2, log
    assert "documents of data.people that some arm reads, which decide its order" in complaint(log)
    assert contents(tmp_path) == before


def test_a_rejected_study_leaves_nothing(moc: Moc, tmp_path: Path) -> None:
    """settings changed. Kept: nothing is written for a study that cannot be run."""
    for override in ("data.people.question_share=1.0", "model.vocab_size=300"):
        code, log = moc(override)
        assert code == 2, log
        assert complaint(log) and not (tmp_path / "runs").exists()


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_damaged_checkpoint_is_passed_over(
    moc: Moc, tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    moc(stop={"at": "after step", "phase": "facts", "step": 7})
    latest = run_dir(tmp_path) / "checkpoints/facts-00000006"
    flip_a_byte(latest / "training.pt")
    code, log = moc()
    assert code == 0, log
    assert f"passed over: {latest}" in log
    check_same(tmp_path, undisturbed)


def test_no_intact_checkpoint_is_explained(moc: Moc, tmp_path: Path) -> None:
    """Starting over on its own would hide that hours were lost."""
    moc(stop={"at": "after step", "phase": "facts", "step": 7})
    checkpoints = run_dir(tmp_path) / "checkpoints"
    for path in checkpoints.glob("*/training.pt"):
        flip_a_byte(path)
    code, log = moc()
    assert code == 1, log
    assert "no intact checkpoint" in complaint(log)
    assert f"remove {checkpoints} to start over" in complaint(log)


def test_damaged_boundary_weights_are_explained(moc: Moc, tmp_path: Path) -> None:
    moc(stop={"at": "after step", "phase": "skills", "step": 1})
    folder = run_dir(tmp_path) / "boundaries/1-facts"
    flip_a_byte(folder / "model.safetensors")
    code, log = moc()
    assert code == 1, log
    assert "checksum differs" in complaint(log) and f"remove {folder}" in complaint(log)
