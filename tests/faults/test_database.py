"""MLflow's sqlite file is whole, or is made anew from the journals."""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import moc.tracking.database
import moc.tracking.server
from moc.config.schema import StudyConfig
from moc.tracking.database import damage, make_database
from moc.tracking.mirror import Tracker, send_report
from moc.tracking.server import default_uri, prepare_mlflow
from moc.tracking.ui import restore
from tests.support.fake_runs import fake_study, write_study
from tests.support.trackers import (
    check_sent_once,
    copy_database,
    die,
    empty_database,
    in_fork,
    track,
)

Write = Callable[..., StudyConfig]


@pytest.fixture
def runs_dir(tmp_path: Path) -> Path:
    return tmp_path / "runs"


@pytest.fixture
def study(runs_dir: Path) -> StudyConfig:
    return written(runs_dir, "fake")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A database is made by copying one."""
    monkeypatch.setattr(moc.tracking.server, "make_database", copy_database)


def written(runs_dir: Path, name: str) -> StudyConfig:
    study = fake_study(runs_dir, num_steps=(10, 10), arms=("moc",))
    study.name = name
    write_study(study)
    return study


def spoil(file: Path, change: Callable[[bytearray], Any]) -> None:
    content = bytearray(file.read_bytes())
    change(content)
    file.write_bytes(content)


@pytest.mark.parametrize("stage", ["tables without a version", "all but its name"])
def test_a_kill_while_the_database_is_made_leaves_none(
    study: StudyConfig, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    """a kill while the database is made. Kept: nothing half made has its name; the next run makes
    it, and every point is there once."""
    prepare_mlflow()
    import mlflow.store.db.utils

    with monkeypatch.context() as patch:
        if stage == "all but its name":
            patch.setattr(moc.tracking.database, "SqlAlchemyStore", None, raising=False)
            patch.setattr(os, "replace", die)
        else:
            patch.setattr(mlflow.store.db.utils, "_upgrade_db", die)
        file = Path(study.runs_dir) / "mlflow.db"
        assert in_fork(lambda: make_database(file)) == -9
    assert [path.name for path in file.parent.glob("mlflow.db*")] == ["mlflow.db.partial"]
    assert track(study) is None
    check_sent_once(study)
    assert not list(file.parent.glob("mlflow.db?*"))


HALF_MADE = {
    "tables without a version": lambda db: db.execute("DROP TABLE alembic_version"),
    "no version yet": lambda db: db.execute("DELETE FROM alembic_version"),
    "no experiment yet": lambda db: db.execute("DELETE FROM experiments"),
}
DAMAGED: dict[str, Callable[[bytearray], Any]] = {
    "empty": lambda content: content.clear(),
    "cut": lambda content: content.__delitem__(slice(50_000, None)),
    "no database": lambda content: content.__setitem__(slice(None), b"junk" * 5_000),
    "a bit of its head": lambda content: content.__setitem__(18, content[18] ^ 0x80),
    "bits of a page": lambda content: content.__setitem__(slice(8192, 8200), b"\xff" * 8),
}


@pytest.mark.parametrize("how", [*HALF_MADE, *DAMAGED])
def test_a_database_that_is_not_whole_is_known(tmp_path: Path, how: str) -> None:
    file = tmp_path / "mlflow.db"
    copy_database(file)
    assert damage(file) is None
    if how in HALF_MADE:
        with closing(sqlite3.connect(file)) as database, database:
            HALF_MADE[how](database)
        assert damage(file) == "it is half made"
    else:
        spoil(file, DAMAGED[how])
        assert damage(file)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("verb", ["run", "ui", "report"])
def test_a_damaged_database_is_made_anew_from_all_journals(
    runs_dir: Path, caplog: pytest.LogCaptureFixture, verb: str
) -> None:
    """a kill while the database is made; small damaged files. Kept: the database is set aside, and
    made anew from the journals of all studies, by run, report and ui; every point is there once."""
    studies = [written(runs_dir, name) for name in ("one", "two")]
    for study in studies:
        assert track(study) is None
    file = runs_dir / "mlflow.db"
    spoil(file, DAMAGED["bits of a page"])
    spoiled = file.read_bytes()
    caplog.clear()
    if verb == "run":
        assert track(studies[0]) is None
    elif verb == "report":
        assert send_report(studies[0].dir) is None
    else:
        assert restore(runs_dir, default_uri(runs_dir)) is None
    for study in studies:
        check_sent_once(study)
    (aside,) = runs_dir.glob("mlflow.db.damaged-*")
    assert aside.read_bytes() == spoiled
    (said,) = [text for text in caplog.messages if "damaged" in text]
    assert aside.name in said and "journals" in said and "\n" not in said


@pytest.mark.usefixtures("quick")
def test_a_kill_while_a_database_is_restored_costs_no_study(
    runs_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    studies = [written(runs_dir, name) for name in ("one", "two")]
    for study in studies:
        assert track(study) is None
    (runs_dir / "mlflow.db").write_bytes(b"")
    with monkeypatch.context() as patch:
        patch.setattr(moc.tracking.mirror.Sender, "send_journal", die)
        assert in_fork(lambda: track(studies[0])) == -9
    assert track(studies[0]) is None
    for study in studies:
        check_sent_once(study)


@pytest.mark.usefixtures("quick")
def test_a_database_pulled_away_during_a_run_is_made_anew(
    study: StudyConfig, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """the tracking server down in the middle. Kept: a database that is removed during a run is made
    anew, with every point of every study once."""
    other = written(Path(study.runs_dir), "other")
    assert track(other) is None
    tracker = Tracker(study)
    tracker.start()
    file = Path(study.runs_dir) / "mlflow.db"
    pull_when_idle(tracker, file)
    assert tracker.close(60) is None
    for each in (study, other):
        check_sent_once(each)
    assert capfd.readouterr().err == "" and not caplog.messages


@pytest.mark.usefixtures("quick")
def test_an_error_of_the_database_is_one_line(
    study: StudyConfig, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert track(study) is None
    send = moc.tracking.mirror.Sender.send_journal

    def without_tables(self: Any) -> float:
        with closing(sqlite3.connect(Path(study.runs_dir) / "mlflow.db")) as database:
            database.execute("ALTER TABLE metrics RENAME TO elsewhere")
        return send(self)

    (study.dir / "arms/moc/seed-0/tracking.json").unlink()
    monkeypatch.setattr(moc.tracking.mirror.Sender, "send_journal", without_tables)
    reason = track(study)
    assert reason is not None and "no such table" in reason and "nothing is lost" in reason
    assert "SELECT" not in reason and "INSERT" not in reason and len(reason) < 400
    written = capfd.readouterr()
    assert written.err + written.out == ""


@pytest.mark.usefixtures("quick")
def test_a_locked_database_waits_and_gets_everything(
    study: StudyConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """a locked database. Kept: one line that nothing is lost, no damage is seen, and the next run
    sends every point once."""
    monkeypatch.setattr(moc.tracking.database, "_BUSY_SEC", 0.2)
    assert track(study) is None
    file = Path(study.runs_dir) / "mlflow.db"
    for cursor in study.dir.rglob("tracking.json"):
        cursor.unlink()
    with closing(sqlite3.connect(file, isolation_level=None)) as holder:
        holder.execute("BEGIN EXCLUSIVE")
        caplog.set_level(logging.WARNING)
        message = track(study)
        assert restore(Path(study.runs_dir), default_uri(Path(study.runs_dir))) is not None
    assert message is not None and "database is locked" in message and "nothing is lost" in message
    assert not list(file.parent.glob("mlflow.db.damaged*"))
    assert track(study) is None
    check_sent_once(study)


def test_another_kind_of_database_in_the_way_is_not_removed(tmp_path: Path) -> None:
    folder = tmp_path / "mlflow.db"
    folder.mkdir()
    with pytest.raises(sqlite3.OperationalError):
        damage(folder)


def pull_when_idle(tracker: Tracker, file: Path) -> None:
    """Remove the database once the first pass is over."""
    background = tracker._background
    assert background is not None
    done = moc.tracking.content.Cursor
    while not done.load(tracker.study.dir).is_complete():
        background._thread.join(0.05)
    background._thread.join(0.2)
    assert file.is_file() and empty_database() != file.read_bytes()
    file.unlink()
