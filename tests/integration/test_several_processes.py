"""Several processes on one study: each takes the runs that nobody holds."""

from __future__ import annotations

import csv
import os
import shutil
from pathlib import Path

import pytest

import moc.study
from moc.errors import ConfigError, RunHeld
from moc.store.files import read_json, write_json
from moc.store.lock import run_lock
from moc.store.rundir import StudyDir
from moc.study import run_study
from tests.conftest import Run
from tests.support.child_tasks import NoTracker
from tests.support.helpers_runs import complaint
from tests.support.helpers_training import tiny_study, write_tiny_study

MEASURED = ("tokens/s", "time", "wait")  # no two runs take the same time


@pytest.fixture(autouse=True)
def no_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moc.study, "Tracker", NoTracker)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The study's folder, run by one process."""
    folder = tmp_path_factory.mktemp("alone")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(moc.study, "Tracker", NoTracker)
        study = tiny_study(folder)
        run_study(study)
    return study.dir


def test_two_at_once_give_the_report_of_one(tmp_path: Path, alone: Path, in_child: Run) -> None:
    """MLflow included."""
    argv, log = ["run", str(write_tiny_study(tmp_path)), "--arms"], tmp_path / "log"
    each = [{"argv": [*argv, arm]} for arm in ("moc", "backbone")]
    codes = in_child("tracked_command", log=log, each=each)
    assert codes == [0, 0], log.read_text() + (tmp_path / "log.1").read_text()
    study = StudyDir(tmp_path / "runs/tiny")
    for arm in ("moc", "backbone"):
        run = study.run(arm, 0, ["facts", "skills"])
        assert read_json(run.info)["status"] == "finished"
        for index in range(3):
            (mine,) = run.path.glob(f"boundaries/{index}-*/model.safetensors")
            theirs = alone / mine.relative_to(study.path)
            assert mine.read_bytes() == theirs.read_bytes()
    tables = sorted(path.name for path in (alone / "report/tables").iterdir())
    assert sorted(path.name for path in (study.report / "tables").iterdir()) == tables
    for name in tables:
        if name.endswith(".csv"):
            mine, theirs = (
                timeless(folder / "report/tables" / name) for folder in (study.path, alone)
            )
            assert mine == theirs, name


def timeless(path: Path) -> list[list[str]]:
    """A table without the columns and rows that a clock fills."""
    with path.open(newline="") as file:
        rows = list(csv.reader(file))
    kept = [i for i, title in enumerate(rows[0]) if not any(word in title for word in MEASURED)]
    return [[row[i] for i in kept] for row in rows if not any(word in row[0] for word in MEASURED)]


def test_a_third_learns_who_holds_the_run(tmp_path: Path, in_child: Run) -> None:
    study, log = write_tiny_study(tmp_path), tmp_path / "log"
    with run_lock(tmp_path / "runs/tiny/arms/moc/seed-0"):
        codes = in_child("command", log=log, argv=["run", str(study), "--arms", "moc"])
    assert codes == [1]
    assert f"seed-0 is held by process {os.getpid()} on " in complaint(log.read_text())


def test_runs_in_other_hands_are_passed_over(
    tmp_path: Path, alone: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = tiny_study(tmp_path)
    other = StudyDir(study.dir).run("moc", 0)
    with run_lock(other.path), pytest.raises(RunHeld, match="1 of 2 runs are in other hands"):
        run_study(study)
    assert f"moc seed 0 | passed over: {other.path} is held by" in capsys.readouterr().out
    assert not other.info.is_file()
    assert read_json(StudyDir(study.dir).run("backbone", 0).info)["status"] == "finished"


def test_other_settings_wait_for_those_in_use(tmp_path: Path, alone: Path) -> None:
    study = tiny_study(tmp_path)
    shutil.copytree(alone, study.dir)
    before = (study.dir / "study.yaml").read_bytes()
    study.evals.num_items = 3
    with (
        run_lock(StudyDir(study.dir).run("moc", 0).path),
        pytest.raises(ConfigError, match=r"other settings \(evals.num_items: 4, now 3\) by pro"),
    ):
        run_study(study, arms=["backbone"])
    assert (study.dir / "study.yaml").read_bytes() == before


def test_any_process_can_execute_a_run_from_file_arm_and_seed(
    tmp_path: Path, alone: Path, in_child: Run
) -> None:
    file = write_tiny_study(tmp_path)
    folder = tmp_path / "runs/tiny"
    folder.mkdir(parents=True)
    for name in ("study.yaml", "tasks", "tokenizer"):  # of whoever prepared the study
        copy = shutil.copytree if (alone / name).is_dir() else shutil.copy
        copy(alone / name, folder / name)
    codes = in_child("execute_run", log=tmp_path / "log", study=str(file), arm="backbone", seed=0)
    assert codes == [0], (tmp_path / "log").read_text()
    weights = "arms/backbone/seed-0/boundaries/2-skills/model.safetensors"
    assert (folder / weights).read_bytes() == (alone / weights).read_bytes()


@pytest.mark.parametrize("verb", ["run", "report", "eval", "generate"])
def test_a_study_of_an_older_format_ends_in_one_line(
    tmp_path: Path, alone: Path, verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from moc.cli import main

    file = write_tiny_study(tmp_path)
    folder = StudyDir(tmp_path / "runs/tiny")
    shutil.copytree(alone, folder.path)
    run = folder.run("moc", 0)
    info = read_json(run.info)
    del info["format"]  # the first had none
    write_json(run.info, info)
    where = {"run": str(file), "report": str(folder.path)}.get(verb, str(run.path))
    assert main([verb, where, *(["--prompt", "a"] if verb == "generate" else [])]) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "is in format 1" in line and "run the study again under another name" in line
