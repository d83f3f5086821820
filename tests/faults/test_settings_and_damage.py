"""Changed settings and damaged files: refused or passed over, never mixed into a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.helpers_runs import Moc, check_same, complaint, contents, run_dir


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
    ],
)
def test_a_finished_run_of_other_settings_is_refused_before_anything_is_touched(
    moc: Moc, tmp_path: Path, override: str
) -> None:
    """Its files would describe another model than they hold."""
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
