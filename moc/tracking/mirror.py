"""Mirrors run directories to MLflow, in the background.

The run directories are the truth: a pass compares them with what a cursor file (``tracking.json``,
beside the journal) says was sent, sends the rest, and moves the cursor once the server has accepted
it. Sending a point twice changes nothing, so a pass may die anywhere. A server that is away costs
training nothing: the next pass, or the next run of the study, sends what this one could not.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from moc.config.schema import StudyConfig
from moc.store.lock import holder_of
from moc.store.rundir import StudyDir
from moc.tracking import content
from moc.tracking.background import Background
from moc.tracking.content import Cursor
from moc.tracking.sender import Sender
from moc.tracking.server import MLFLOW_ENVIRONMENT, default_uri, serve_ui, tracking_uri
from moc.tracking.views import experiment_tags

__all__ = ["Tracker", "default_uri", "send_report", "serve_ui", "tracking_uri"]

log = logging.getLogger(__name__)


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
        known: set[str] = set()
        self._background = Background(
            "moc-tracking",
            lambda closing: _mirror(self.study, self.uri, known, closing=closing),
            lambda why: log.warning(
                "MLflow at %s: %s; training goes on", content.public_uri(self.uri), why
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
        server = content.public_uri(self.uri)
        return (
            f"MLflow at {server} has not taken everything ({reason}); nothing is "
            f"lost: {self.study.dir}/arms/*/seed-*/ keeps it and the next run sends it"
        )


def _connect(uri: str) -> Any:
    """An MlflowClient. The import takes seconds, so it happens here, in the thread."""
    for name, value in MLFLOW_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


def send_report(folder: Path) -> str | None:
    """Send the rebuilt report of the study in ``folder``, if MLflow has the study; its runs stay as
    they are. One line for the user if that did not work, else None."""
    from filelock import FileLock

    from moc.store.find import study_of

    cursor = Cursor.load(folder)
    if not cursor.run_id:
        return None
    try:
        study, _ = study_of(folder)
        uri = tracking_uri(study)
        if uri == default_uri(folder.parent) and not (folder.parent / "mlflow.db").is_file():
            return None  # a copy of the folder, without the database
        with FileLock(folder.parent / ".mlflow.lock"):
            Sender(_connect(uri), folder, {cursor.run_id}).send_report(study)
    except Exception as error:  # whatever a server can raise: the report itself is on disk
        return f"MLflow keeps what it had of this report ({content.one_line(error)})"
    return None


def _mirror(study: StudyConfig, uri: str, known: set[str], *, closing: bool) -> None:
    """One pass over the study. ``known`` are the MLflow runs seen since the tracker started."""
    from filelock import FileLock

    if not study.dir.is_dir():
        return  # removed under the run, which says so: a cursor would make half of it again
    # two processes of one study, or the first two ever, must not create the same things twice
    with FileLock(Path(study.runs_dir) / ".mlflow.lock"):
        client = _connect(uri)
        experiment_id = _experiment(client, study, uri)
        runs = content.run_infos(study)
        parent = Sender(client, study.dir, known)
        parent.open(
            experiment_id, study.name, content.parent_tags(study), content.started(runs.values())
        )
        parent.send_report(study)
        parent.send_views(experiment_id, experiment_tags(study))
        for name in ("study.yaml", "plan.json", "environment.json", "datasets.json"):
            parent.send_files(name)
        ended, in_hand = 0.0, False
        for (arm, seed), info in runs.items():
            if info:
                folder = StudyDir(study.dir).run(arm, seed).path
                child = Sender(client, folder, known, info["run_uuid"])
                tags = content.child_tags(study, info) | {
                    "mlflow.parentRunId": parent.cursor.run_id
                }
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
        worst = next((s for s in ("failed", "running", "missing") if s in statuses), "finished")
        parent.send_status(worst, ended, closing=closing and not in_hand)


def _experiment(client: Any, study: StudyConfig, uri: str) -> str:
    """Its id. A database keeps no artifacts: they go to ``runs_dir``."""
    name = study.name
    found = client.get_experiment_by_name(name)
    if found is not None:
        return found.experiment_id
    artifacts = (Path(study.runs_dir) / "mlartifacts").resolve().as_uri()
    return client.create_experiment(name, artifacts if uri.startswith("sqlite:") else None)
