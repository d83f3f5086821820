"""Mirrors run directories to MLflow, in the background.

The run directories are the truth: a pass compares them with what a cursor file (``tracking.json``,
beside the journal) says was sent, sends the rest, and moves the cursor once the server has accepted
it. Sending a point twice changes nothing, so a pass may die anywhere. A server that is away costs
training nothing: the next pass, or the next run of the study, sends what this one could not.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from moc.config.schema import StudyConfig
from moc.config.secrets import as_written, public_uris
from moc.store.find import study_of
from moc.store.lock import holder_of
from moc.store.rundir import StudyDir
from moc.tracking import content
from moc.tracking.background import Background
from moc.tracking.content import Cursor
from moc.tracking.database import damage, reach, sqlite_file
from moc.tracking.sender import PARENT_TAG, Sender
from moc.tracking.server import Server, tracking_uri
from moc.tracking.views import experiment_tags

log = logging.getLogger(__name__)

_WORST_FIRST = ("failed", "diverged", "running", "paused", "missing")  # of a study's runs


class Tracker:
    """Sends one study's results to MLflow from a daemon thread. Build one, on rank 0.

    No call but ``close`` waits for anything, and none raises because of the server.
    """

    def __init__(self, study: StudyConfig) -> None:
        self.study = study
        self.uri = tracking_uri(study)
        self._background: Background | None = None

    def start(self) -> None:
        """Start the thread and send what earlier runs of the study have left."""
        server = Server(self.uri, Path(self.study.runs_dir))
        self._background = Background(
            "moc-tracking",
            lambda closing: _mirror(server, self.study, closing=closing),
            lambda why: log.warning(
                "MLflow at %s: %s; training goes on", as_written(self.uri), why
            ),
        )
        self._background.start()

    def sync(self) -> None:
        """Send what is new, soon."""
        if self._background is not None:
            self._background.wake()

    def close(self, timeout_sec: float = 30.0) -> str | None:
        """Send the rest and stop. One line for the user if that did not work, else None."""
        if self._background is None:
            return None
        reason = self._background.close(timeout_sec)
        self._background = None
        if reason is None:
            return None
        server = as_written(self.uri)
        return (
            f"MLflow at {server} has not taken everything ({reason}); nothing is "
            f"lost: {self.study.dir}/arms/*/seed-*/ keeps it and the next run sends it"
        )


def send_report(folder: Path) -> str | None:
    """Send what is new of the study in ``folder``, its report above all, if MLflow has the study.
    One line for the user if that did not work, else None."""
    if not (folder / content.CURSOR_FILE).is_file():
        return None
    study, _ = study_of(folder)
    uri = tracking_uri(study)
    file = sqlite_file(uri)
    if file is not None and not file.is_file():
        return None  # a copy of the folder, without the database
    remedy = ""
    if study.tracking.uri is not None and file is None:
        remedy = (
            "; a study's folder keeps no password: give it in MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD (a database: PGPASSWORD), or set what tracking.uri names"
        )
    try:
        if "${" in uri:
            raise LookupError(f"tracking.uri is {uri}, which is not set here")
        _mirror(Server(uri, folder.parent), study, closing=True)
    except Exception as error:  # whatever a server can raise: the report itself is on disk
        return f"MLflow keeps what it had of this report ({content.one_line(error)}){remedy}"
    return None


def restore(runs_dir: Path, uri: str) -> str | None:
    """See to it that the database ``uri`` can be opened, and if it is a file, that it is whole and
    has all studies in ``runs_dir``.

    Returns:
        One line for the user if there is nothing to show, else None.
    """
    file, server = sqlite_file(uri), Server(uri, runs_dir)
    try:
        if file is None:
            reach(uri)
            return None
        if not file.is_file() and not any(server.studies(server.begun())):
            return f"no results in {file} yet; run a study first"
        whole = file.is_file() and damage(file) is None
        if not whole or not all(Cursor.load(folder).is_complete() for folder in server.begun()):
            with server.turn() as client:
                _send_others(client, server)
    except Exception as error:  # whatever a database can raise
        return f"{public_uris(uri)} cannot be opened ({content.one_line(error)})"
    return None


def _mirror(server: Server, study: StudyConfig, *, closing: bool) -> None:
    """One pass over the study, and over the others that a database has lost."""
    if not study.dir.is_dir():
        return  # removed under the run, which says so: a cursor would make half of it again
    with server.turn() as client:
        _send_study(client, server, study, closing=closing)
        _send_others(client, server, but=study.dir)


def _send_others(client: Any, server: Server, *, but: Path | None = None) -> None:
    for study in server.unsent():
        if study.dir == but:
            continue
        try:
            _send_study(client, server, study, closing=True)
        except Exception as error:  # must not cost the others anything
            log.warning("%s: MLflow has not taken it (%s)", study.dir, content.one_line(error))


def _send_study(client: Any, server: Server, study: StudyConfig, *, closing: bool) -> None:
    study = _shown(study)
    experiment_id = _experiment(client, study, server.uri)
    runs = content.run_infos(study)
    parent = Sender(client, study.dir, server.known)
    parent.open(
        experiment_id,
        study.name,
        content.parent_tags(study),
        content.started(runs.values()),
        [info["run_uuid"] for info in runs.values() if info],
    )
    parent.send_report(study)
    parent.send_views(experiment_id, experiment_tags(study))
    for name in ("study.yaml", "plan.json", "environment.json", "datasets.json"):
        parent.send_files(name)
    ended, in_hand = 0.0, False
    for (arm, seed), info in runs.items():
        if info:
            folder = StudyDir(study.dir).run(arm, seed).path
            child = Sender(client, folder, server.known, info["run_uuid"])
            tags = content.child_tags(study, info) | {PARENT_TAG: parent.cursor.run_id}
            child.open(experiment_id, f"{arm} seed {seed}", tags, content.started([info]))
            child.send_params(content.params(study, info))
            child.send_datasets(study)
            last = child.send_journal()
            for pattern in content.CHILD_FILES:
                child.send_files(pattern)
            held = holder_of(folder) is not None  # by another process: ours are done
            in_hand = in_hand or held
            child.send_status(info["status"], last, closing=closing and not held)
            ended = max(ended, last)
    statuses = {info.get("status", "missing") for info in runs.values()}
    worst = next((status for status in _WORST_FIRST if status in statuses), "finished")
    parent.send_status(worst, ended, closing=closing and not in_hand)


def _shown(study: StudyConfig) -> StudyConfig:
    """The study as it may be sent; what names its folder stays."""
    return replace(as_written(study), name=study.name, runs_dir=study.runs_dir)


def _experiment(client: Any, study: StudyConfig, uri: str) -> str:
    """Its id. A database keeps no artifacts: they go to ``runs_dir``."""
    name = study.name
    found = client.get_experiment_by_name(name)
    if found is not None:
        return found.experiment_id
    artifacts = (Path(study.runs_dir) / "mlartifacts").resolve().as_uri()
    database = uri.startswith(("sqlite", "postgresql", "mysql", "mssql"))
    return client.create_experiment(name, artifacts if database else None)
