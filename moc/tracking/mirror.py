"""Mirrors run directories to MLflow, in the background. The only file that imports mlflow.

The run directories are the truth: a pass compares them with what a cursor file (``tracking.json``,
beside the journal) says was sent, sends the rest, and moves the cursor once the server has accepted
it. Sending a point twice changes nothing, so a pass may die anywhere. A server that is away costs
training nothing: the next pass, or the next run of the study, sends what this one could not.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from moc.config.load import config_hash
from moc.config.schema import StudyConfig
from moc.store.journal import read
from moc.tracking import content
from moc.tracking.background import Background
from moc.tracking.content import Cursor, Point
from moc.tracking.server import MLFLOW_ENVIRONMENT, default_uri, serve_ui, tracking_uri
from moc.tracking.views import experiment_tags

__all__ = ["Tracker", "default_uri", "send_report", "serve_ui", "tracking_uri"]

log = logging.getLogger(__name__)

UUID_TAG = "run_uuid"  # ours, in the files: the same run directory is the same MLflow run
BATCH_PARAMS = 100
BATCH_METRICS = 1000
BLOCK_RECORDS = 200  # journal records between two moves of the cursor


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
            _Mirror(_connect(uri), folder, {cursor.run_id}).send_report(study)
    except Exception as error:  # whatever a server can raise: the report itself is on disk
        return f"MLflow keeps what it had of this report ({content.one_line(error)})"
    return None


def _mirror(study: StudyConfig, uri: str, known: set[str], *, closing: bool) -> None:
    """One pass over the study. ``known`` are the MLflow runs seen since the tracker started."""
    from filelock import FileLock

    study.dir.mkdir(parents=True, exist_ok=True)
    # two processes of one study, or the first two ever, must not create the same things twice
    with FileLock(Path(study.runs_dir) / ".mlflow.lock"):
        client = _connect(uri)
        experiment_id = _experiment(client, study, uri)
        runs = content.run_infos(study)
        parent = _Mirror(client, study.dir, known)
        parent.open(
            experiment_id, study.name, content.parent_tags(study), content.started(runs.values())
        )
        parent.send_report(study)
        parent.send_views(experiment_id, experiment_tags(study))
        for name in ("study.yaml", "plan.json", "environment.json", "datasets.json"):
            parent.send_files(name)
        ended = 0.0
        for (arm, seed), info in runs.items():
            if info:
                folder = study.dir / "arms" / arm / f"seed-{seed}"
                child = _Mirror(client, folder, known, info["run_uuid"])
                tags = content.child_tags(study, info) | {
                    "mlflow.parentRunId": parent.cursor.run_id
                }
                child.open(experiment_id, f"{arm} seed {seed}", tags, content.started([info]))
                child.send_params(content.params(study, info))
                child.send_datasets(study)
                last = child.send_journal()
                for pattern in content.CHILD_FILES:
                    child.send_files(pattern)
                child.send_status(info["status"], last, closing=closing)
                ended = max(ended, last)
        statuses = {info.get("status", "missing") for info in runs.values()}
        worst = next((s for s in ("failed", "running", "missing") if s in statuses), "finished")
        parent.send_status(worst, ended, closing=closing)


class _Mirror:
    """One folder and its MLflow run. Every ``send`` skips what the server already has."""

    def __init__(self, client: Any, folder: Path, known: set[str], run_uuid: str = "") -> None:
        self.client, self.folder, self.known = client, folder, known
        self.cursor = Cursor.load(folder, run_uuid)

    def open(self, experiment_id: str, name: str, tags: dict[str, str], start: float) -> None:
        """Find the run by our uuid or create it; a run not met before is sent from the start.
        ``start`` in Unix seconds is that of the work, whenever it is sent."""
        from mlflow.entities import RunTag

        if self.cursor.run_id in self.known:
            return
        self.cursor.save(self.folder)  # the uuid, before anything carries it
        query = f"tags.{UUID_TAG} = '{self.cursor.uuid}'"
        found = self.client.search_runs([experiment_id], query, max_results=1)
        if found:
            run_id = found[0].info.run_id
            self.client.log_batch(run_id, tags=[RunTag(*tag) for tag in tags.items()])
        else:
            tags = tags | {UUID_TAG: self.cursor.uuid}
            run = self.client.create_run(
                experiment_id, start_time=int(start * 1000), tags=tags, run_name=name
            )
            run_id = run.info.run_id
        if run_id != self.cursor.run_id:
            self.cursor = Cursor(self.cursor.uuid, run_id)
        self.known.add(run_id)
        self.cursor.save(self.folder)

    def send_params(self, flat: dict[str, str]) -> None:
        from mlflow.entities import Param

        if self.cursor.stamps.get("params") == config_hash(flat):
            return
        there = self.client.get_run(self.cursor.run_id).data.params
        changed = [key for key in flat if key in there and there[key] != flat[key]]
        if changed:
            log.warning("MLflow keeps the first value of changed params: %s", ", ".join(changed))
        new = [Param(key, value) for key, value in flat.items() if key not in there]
        for chunk in content.chunks(new, BATCH_PARAMS):
            self.client.log_batch(self.cursor.run_id, params=chunk)
        self._stamp("params", config_hash(flat))

    def send_datasets(self, study: StudyConfig) -> None:
        """The fingerprints in datasets.json ({phase: {source: fingerprint}}) as run inputs."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        described = content.datasets(study)
        if not described or self.cursor.stamps.get("datasets") == config_hash(described):
            return
        entities = [
            DatasetInput(
                Dataset(name, digest, kind, origin), [InputTag("mlflow.data.context", phase)]
            )
            for phase, name, digest, kind, origin in described
        ]
        self.client.log_inputs(self.cursor.run_id, entities)
        self._stamp("datasets", config_hash(described))

    def send_journal(self) -> float:
        """The committed records, in blocks; the cursor moves after each. Unix time of the last."""
        cursor = self.cursor
        records = read(self.folder / "metrics.jsonl", committed=True)
        if cursor.records > len(records) or (
            cursor.records and config_hash(records[cursor.records - 1]) != cursor.last
        ):
            cursor.records = 0  # rewritten by a resume: send it all, known points change nothing
        for block in content.chunks(records[cursor.records :], BLOCK_RECORDS):
            self._send_metrics(content.points(block))
            cursor.records += len(block)
            cursor.last = config_hash(block[-1])
            self.cursor.save(self.folder)
        skipped = str(sum(not math.isfinite(value) for _, value, _, _ in content.points(records)))
        if skipped != self.cursor.stamps.get("skipped", "0"):
            self.client.set_tag(self.cursor.run_id, "non_finite_values_skipped", skipped)
            self._stamp("skipped", skipped)
        return records[-1]["time"] if records else time.time()

    def send_report(self, study: StudyConfig) -> None:
        """The report at the root of the artifacts, its summary as metrics and as description."""
        for pattern in ("report.html", "figures/*", "tables/*"):
            self.send_files(pattern, below="report")
        described = content.description(study)
        stamp = config_hash(described)
        sent = self.cursor.stamps.get("description")
        if stamp != sent:
            tags = {} if sent is None else self.client.get_run(self.cursor.run_id).data.tags
            # else a person has written there
            if sent is None or config_hash(tags.get(content.NOTE_TAG)) == sent:
                self.client.set_tag(self.cursor.run_id, content.NOTE_TAG, described)
            self._stamp("description", stamp)
        summed = content.summary_points(study)
        if summed and self.cursor.stamps.get("summary") != config_hash(summed):
            self._send_metrics(summed)
            self._stamp("summary", config_hash(summed))

    def send_views(self, experiment_id: str, tags: dict[str, str]) -> None:
        if self.cursor.stamps.get("views") != config_hash(tags):
            for key, value in tags.items():
                self.client.set_experiment_tag(experiment_id, key, value)
            self._stamp("views", config_hash(tags))

    def send_files(self, pattern: str, *, below: str = "") -> None:
        """The files that match ``pattern``, named as they are in the folder ``below``."""
        for path in sorted((self.folder / below).glob(pattern)):
            name = path.relative_to(self.folder / below)
            if path.is_file() and path.suffix != ".tmp":
                stamp = content.file_stamp(path)
                if self.cursor.stamps.get(str(name)) != stamp:
                    parent = None if name.parent == Path(".") else name.parent.as_posix()
                    self.client.log_artifact(self.cursor.run_id, str(path), parent)
                    self._stamp(str(name), stamp)

    def send_status(self, status: str, ended: float, *, closing: bool) -> None:
        """``running`` and ``missing`` work is KILLED once nothing works on it any more. ``ended``
        in Unix seconds."""
        unfinished = "KILLED" if closing else "RUNNING"
        now = {"finished": "FINISHED", "failed": "FAILED"}.get(status, unfinished)
        if self.cursor.stamps.get("status") != now:
            if now == "RUNNING":
                self.client.update_run(self.cursor.run_id, status=now)
            else:
                self.client.set_terminated(self.cursor.run_id, now, int(ended * 1000))
            self._stamp("status", now)

    def _send_metrics(self, new: Iterable[Point]) -> None:
        from mlflow.entities import Metric

        metrics = [
            Metric(content.clean(name), value, int(time * 1000), tokens)
            for name, value, time, tokens in new
            if math.isfinite(value)
        ]
        for chunk in content.chunks(metrics, BATCH_METRICS):
            self.client.log_batch(self.cursor.run_id, metrics=chunk)

    def _stamp(self, key: str, stamp: str) -> None:
        self.cursor.stamps[key] = stamp
        self.cursor.save(self.folder)


def _experiment(client: Any, study: StudyConfig, uri: str) -> str:
    """Its id. A database keeps no artifacts: they go to ``runs_dir``."""
    name = study.name
    found = client.get_experiment_by_name(name)
    if found is not None:
        return found.experiment_id
    artifacts = (Path(study.runs_dir) / "mlartifacts").resolve().as_uri()
    return client.create_experiment(name, artifacts if uri.startswith("sqlite:") else None)
