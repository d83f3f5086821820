"""A run that is killed, stopped or damaged ends where an undisturbed one does, to the bit.

Runs are child processes that end at a chosen moment (``tests.child_tasks``); one test uses the
command as a user does and kills it from outside.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moc.journal import read
from tests.conftest import ROOT, Run
from tests.helpers_training import write_tiny_study

Moc = Callable[..., tuple[int | None, str]]
BOUNDARIES = ["0-start", "1-facts", "2-skills"]
KILLS: list[dict[str, Any]] = [
    {"at": "while evaluating", "boundary": 0},
    {"at": "before scores", "folder": "0-start"},
    {"at": "after step", "phase": "facts", "step": 2},  # before the first checkpoint
    {"at": "while writing", "folder": "facts-00000003"},
    {"at": "before commit", "phase": "facts", "step": 3},
    {"at": "after step", "phase": "facts", "step": 5},
    {"at": "while writing", "folder": "1-facts"},
    {"at": "before commit", "phase": "facts", "step": 8},
    {"at": "while evaluating", "boundary": 0},  # of the weights on disk
    {"at": "before scores", "folder": "1-facts"},
    {"at": "after step", "phase": "skills", "step": 1},
    {"at": "before commit", "phase": "skills", "step": 3},
    {"at": "after step", "phase": "skills", "step": 6},
    {"at": "before scores", "folder": "2-skills"},
]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def moc(tmp_path: Path, cache: Path, in_child: Run) -> Moc:
    """``moc(*overrides, stop=...)``: run the tiny study's memory arm in ``tmp_path``; its exit code
    and output."""
    return lambda *overrides, stop=None: run_in(tmp_path, cache, in_child, overrides, stop)


def run_in(
    folder: Path, cache: Path, in_child: Run, overrides: tuple[str, ...], stop: Any
) -> tuple[int | None, str]:
    study, log = write_tiny_study(folder), folder / "log"
    argv = ["run", str(study), "--arms", "moc", f"cache_dir={cache}", *overrides]
    if stop is not None:
        stop = {"signal": signal.SIGKILL, **stop}
    (code,) = in_child("command", log=log, argv=argv, stop=stop)
    return code, log.read_text()


@pytest.fixture(scope="module")
def undisturbed_folder(
    tmp_path_factory: pytest.TempPathFactory, cache: Path, in_child: Run
) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    code, log = run_in(folder, cache, in_child, (), None)
    assert code == 0, log
    return folder


@pytest.fixture(scope="module")
def undisturbed(undisturbed_folder: Path) -> dict[str, Any]:
    return outcome(undisturbed_folder)


@pytest.fixture
def finished(undisturbed_folder: Path, tmp_path: Path) -> None:
    """``tmp_path`` holds a finished run."""
    shutil.copytree(undisturbed_folder / "runs", tmp_path / "runs")


def run_dir(folder: Path) -> Path:
    return folder / "runs/tiny/arms/moc/seed-0"


def outcome(folder: Path) -> dict[str, Any]:
    """All that should not depend on interruptions."""
    run = run_dir(folder)
    scores = {}
    for name in BOUNDARIES:
        scores[name] = json.loads((run / f"boundaries/{name}/evals.json").read_text())
        del scores[name]["elapsed_sec"]
    records = read(run / "metrics.jsonl")
    return {
        "weights": [
            (run / f"boundaries/{name}/model.safetensors").read_bytes() for name in BOUNDARIES
        ],
        "scores": scores,
        "losses": {
            (record["phase"], record["step"]): record["metrics"][f"{record['phase']}/train/loss"]
            for record in records
            if f"{record['phase']}/train/loss" in record["metrics"]
        },
        "records": Counter(
            (record["phase"], record["step"], "eval/people/bits_per_byte" in record["metrics"])
            for record in records
        ),
        "chapters": Counter(
            (record["phase"], record["step"], record["layer"])
            for record in read(run / "chapters.jsonl")
        ),
        "checkpoints": sorted(path.name for path in (run / "checkpoints").glob("*")),
    }


def check_same(folder: Path, undisturbed: dict[str, Any]) -> None:
    found = outcome(folder)
    for key, expected in undisturbed.items():
        assert found[key] == expected, key
    assert json.loads((run_dir(folder) / "run.json").read_text())["status"] == "finished"


def test_an_undisturbed_run_records_each_step_once(undisturbed: dict[str, Any]) -> None:
    """What the other tests compare with is itself complete."""
    steps = [("facts", s) for s in range(1, 9)] + [("skills", s) for s in range(1, 7)]
    assert list(undisturbed["losses"]) == steps
    evals = [("start", 0, True), ("facts", 8, True), ("skills", 6, True)]
    assert undisturbed["records"] == Counter([*((p, s, False) for p, s in steps), *evals])
    assert undisturbed["chapters"] == Counter((p, s, layer) for p, s in steps for layer in (0, 1))
    assert undisturbed["checkpoints"] == []  # those of finished phases are removed
    assert len(set(undisturbed["weights"])) == 3


def test_a_run_killed_at_every_awkward_moment(
    moc: Moc, tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    for kill in KILLS:
        code, log = moc(stop=kill)
        assert code == -signal.SIGKILL, f"{kill} was never reached:\n{log}"
    code, log = moc()
    assert code == 0, log
    check_same(tmp_path, undisturbed)
    assert not list(run_dir(tmp_path).rglob("*.partial"))


def test_the_command_killed_from_outside(tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    """The real command, MLflow and report included."""
    command = [sys.executable, "-m", "moc", "run", str(write_tiny_study(tmp_path)), "--arms", "moc"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
        journal, deadline = run_dir(tmp_path) / "metrics.jsonl", time.monotonic() + 90
        while len(read(journal)) < 5 and time.monotonic() < deadline:
            time.sleep(0.005)
        process.kill()
        process.wait()
    assert 5 <= len(read(journal)) < 14, (tmp_path / "log").read_text()
    again = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert again.returncode == 0, again.stdout + again.stderr
    check_same(tmp_path, undisturbed)
    assert (tmp_path / "runs/tiny/report/report.html").is_file()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_asked_to_stop(
    moc: Moc, tmp_path: Path, undisturbed: dict[str, Any], number: signal.Signals
) -> None:
    """In a step (it is finished and saved), at a phase's last step, during an evaluation."""
    stops = [
        ({"at": "while evaluating", "boundary": 0}, "stopped"),  # before the first step
        ({"at": "after step", "phase": "facts", "step": 4}, "stopped in phase facts at step 4"),
        ({"at": "after step", "phase": "facts", "step": 8}, "stopped at the end of phase facts"),
        ({"at": "while evaluating", "boundary": 0}, "stopped"),  # of the weights on disk
        ({"at": "while evaluating", "boundary": 1}, "stopped"),  # inside the trainer
    ]
    for stop, message in stops:
        code, log = moc(stop={**stop, "signal": number})
        assert code == 130, log
        assert message in complaint(log) and "the same command goes on" in complaint(log)
        if stop["at"] == "after step" and stop["step"] == 4:
            assert (run_dir(tmp_path) / "checkpoints/facts-00000004").is_dir()
    code, log = moc()
    assert code == 0, log
    check_same(tmp_path, undisturbed)


@pytest.mark.usefixtures("finished")
def test_what_is_complete_is_skipped(moc: Moc, tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    files = sorted(run_dir(tmp_path).rglob("*.safetensors"))
    stamps = [file.stat().st_mtime_ns for file in files]
    code, log = moc(stop={"at": "after step"})  # any training step would kill it
    assert code == 0, log
    code, log = moc(stop={"at": "while evaluating", "boundary": 0})  # and so would a score
    assert code == 0, log
    assert [file.stat().st_mtime_ns for file in files] == stamps
    check_same(tmp_path, undisturbed)


@pytest.mark.usefixtures("finished")
def test_other_evaluations_score_the_old_weights_again(moc: Moc, tmp_path: Path) -> None:
    code, log = moc("evals.num_items=3", stop={"at": "after step"})
    assert code == 0, log
    for name in BOUNDARIES:
        record = json.loads((run_dir(tmp_path) / f"boundaries/{name}/evals.json").read_text())
        assert record["tasks"]["facts_choice"]["num_items"] == 3


OTHER_SETTINGS = "other settings; give the study another name, or remove"


@pytest.mark.usefixtures("finished")
@pytest.mark.parametrize(
    "override",
    [
        "phases.skills.optimizer.bank.lr=0.5",
        "phases.facts.schedule.warmup_steps=1",
        "data.skills.num_examples=150",  # every phase, through the tokenizer
        "arms.moc.model.memory.num_routed=3",
    ],
)
def test_a_finished_run_of_other_settings_is_refused_before_anything_is_touched(
    moc: Moc, tmp_path: Path, override: str
) -> None:
    """Its files would describe another model than they hold."""
    before = contents(tmp_path)
    code, log = moc(override)
    assert code == 2, log
    assert OTHER_SETTINGS in complaint(log)
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
    assert OTHER_SETTINGS in complaint(log)
    assert contents(tmp_path) == before


def contents(folder: Path) -> dict[Path, bytes]:
    files = [path for path in (folder / "runs").rglob("*") if path.is_file()]
    return {path: path.read_bytes() for path in files if path.name != ".lock"}


def complaint(log: str) -> str:
    """The one line that explains what is wrong."""
    assert "Traceback" not in log
    (line,) = [line for line in log.splitlines() if line.startswith("moc: ")]
    return line


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
