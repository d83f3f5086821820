"""Mirrors run directories to MLflow, in the background. The only file that imports mlflow.

The run directories are the truth: a pass compares them with what a cursor file (``tracking.json``,
beside the journal) says was sent, sends the rest, and moves the cursor once the server has accepted
it. Sending a point twice changes nothing, so a pass may die anywhere. A server that is away costs
training nothing: the next pass, or the next run of the study, sends what this one could not.
"""

from __future__ import annotations

import json
import logging
import math
import os
import threading
import uuid
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from moc.config import StudyConfig, config_hash
from moc.journal import read
from moc.tracked import (
    Point,
    child_tags,
    chunks,
    clean,
    datasets,
    file_stamp,
    one_line,
    params,
    parent_tags,
    points,
    read_json,
)
from moc.ui import MLFLOW_ENVIRONMENT, default_uri, public_uri, serve_ui, tracking_uri

__all__ = ["Tracker", "default_uri", "serve_ui", "tracking_uri"]

log = logging.getLogger(__name__)

CURSOR_FILE = "tracking.json"
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
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._error: str | None = None

    def start(self) -> None:
        """Start the thread and send what earlier runs of the study have left."""
        self._thread = threading.Thread(target=self._loop, name="moc-tracking", daemon=True)
        self._thread.start()
        self.sync()

    def sync(self) -> None:
        """Send what is new, soon."""
        self._wake.set()

    def close(self, timeout_sec: float = 30.0) -> str | None:
        """Send the rest and stop. One line for the user if that did not work, else None."""
        if self._thread is None:
            return None
        self._closing.set()
        self._wake.set()
        self._thread.join(timeout_sec)
        reason = f"busy after {timeout_sec:.0f} s" if self._thread.is_alive() else self._error
        self._thread = None
        if reason is None:
            return None
        return (
            f"MLflow at {public_uri(self.uri)} has not taken everything ({reason}); nothing is "
            f"lost: {self.study.dir}/arms/*/seed-*/ keeps it and the next run sends it"
        )

    def _loop(self) -> None:
        known: set[str] = set()
        while True:
            self._wake.wait()
            self._wake.clear()
            closing = self._closing.is_set()
            try:
                _mirror(self.study, self.uri, known, closing=closing)
                self._error = None
            except Exception as error:  # the thread must outlive whatever a server can raise
                reason = one_line(error)
                if self._error is None:
                    log.warning("MLflow at %s: %s; training goes on", public_uri(self.uri), reason)
                self._error = reason
            if closing:
                return


@dataclass
class _Cursor:
    """What MLflow has accepted of one folder."""

    uuid: str
    run_id: str = ""
    records: int = 0  # of the journal
    last: str = ""  # digest of the last of them
    stamps: dict[str, str] = field(default_factory=dict)  # of whatever is sent whole


def _connect(uri: str) -> Any:
    """An MlflowClient. The import takes seconds, so it happens here, in the thread."""
    for name, value in MLFLOW_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


def _mirror(study: StudyConfig, uri: str, known: set[str], *, closing: bool) -> None:
    """One pass over the study. ``known`` are the MLflow runs seen since the tracker started."""
    from filelock import FileLock

    study.dir.mkdir(parents=True, exist_ok=True)
    # two processes of one study, or the first two ever, must not create the same things twice
    with FileLock(Path(study.runs_dir) / ".mlflow.lock"):
        client = _connect(uri)
        experiment_id = _experiment(client, study, uri)
        parent = _Mirror(client, study.dir, known)
        parent.open(experiment_id, study.name, parent_tags(study))
        for name in ("study.yaml", "plan.json", "environment.json", "datasets.json", "report/**/*"):
            parent.send_files(name)
        statuses = []
        for arm in study.arms:
            for seed in study.seeds:
                folder = study.dir / "arms" / arm / f"seed-{seed}"
                info = read_json(folder / "run.json")
                statuses.append(info.get("status", "missing"))
                if info:
                    child = _Mirror(client, folder, known, info["run_uuid"])
                    tags = child_tags(study, info) | {"mlflow.parentRunId": parent.cursor.run_id}
                    child.open(experiment_id, f"{arm} seed {seed}", tags)
                    child.send_params(params(study, arm, seed))
                    child.send_datasets(study)
                    child.send_journal()
                    child.send_boundaries()
                    child.send_status(info["status"], closing=closing)
        worst = next((s for s in ("failed", "running", "missing") if s in statuses), "finished")
        parent.send_status(worst, closing=closing)


class _Mirror:
    """One folder and its MLflow run. Every ``send`` skips what the server already has."""

    def __init__(self, client: Any, folder: Path, known: set[str], run_uuid: str = "") -> None:
        self.client, self.folder, self.known = client, folder, known
        saved = read_json(folder / CURSOR_FILE)
        if not saved or run_uuid not in ("", saved["uuid"]):
            saved = {"uuid": run_uuid or uuid.uuid4().hex}
        self.cursor = _Cursor(**saved)

    def open(self, experiment_id: str, name: str, tags: dict[str, str]) -> None:
        """Find the run by our uuid or create it; a run not met before is sent from the start."""
        from mlflow.entities import RunTag

        if self.cursor.run_id in self.known:
            return
        self._save()  # the uuid, before anything carries it
        query = f"tags.{UUID_TAG} = '{self.cursor.uuid}'"
        found = self.client.search_runs([experiment_id], query, max_results=1)
        if found:
            run_id = found[0].info.run_id
            self.client.log_batch(run_id, tags=[RunTag(*tag) for tag in tags.items()])
        else:
            tags = tags | {UUID_TAG: self.cursor.uuid}
            run_id = self.client.create_run(experiment_id, tags=tags, run_name=name).info.run_id
        if run_id != self.cursor.run_id:
            self.cursor = _Cursor(self.cursor.uuid, run_id)
        self.known.add(run_id)
        self._save()

    def send_params(self, flat: dict[str, str]) -> None:
        from mlflow.entities import Param

        if self.cursor.stamps.get("params") == config_hash(flat):
            return
        there = self.client.get_run(self.cursor.run_id).data.params
        changed = [key for key in flat if key in there and there[key] != flat[key]]
        if changed:
            log.warning("MLflow keeps the first value of changed params: %s", ", ".join(changed))
        new = [Param(key, value) for key, value in flat.items() if key not in there]
        for chunk in chunks(new, BATCH_PARAMS):
            self.client.log_batch(self.cursor.run_id, params=chunk)
        self._stamp("params", config_hash(flat))

    def send_datasets(self, study: StudyConfig) -> None:
        """The fingerprints in datasets.json ({phase: {source: fingerprint}}) as run inputs."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        described = datasets(study)
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

    def send_journal(self) -> None:
        """The committed records, in blocks; the cursor moves after each."""
        cursor = self.cursor
        records = read(self.folder / "metrics.jsonl", committed=True)
        if cursor.records > len(records) or (
            cursor.records and config_hash(records[cursor.records - 1]) != cursor.last
        ):
            cursor.records = 0  # rewritten by a resume: send it all, known points change nothing
        for block in chunks(records[cursor.records :], BLOCK_RECORDS):
            self._send_metrics(points(block))
            cursor.records += len(block)
            cursor.last = config_hash(block[-1])
            self._save()
        skipped = str(sum(not math.isfinite(value) for _, value, _, _ in points(records)))
        if skipped != self.cursor.stamps.get("skipped", "0"):
            self.client.set_tag(self.cursor.run_id, "non_finite_values_skipped", skipped)
            self._stamp("skipped", skipped)

    def send_boundaries(self) -> None:
        """Full results and samples as artifacts, with what every layer's router did; the headline
        figures are in the journal."""
        self.send_files("boundaries/*/evals.json")
        self.send_files("chapters.jsonl")
        self.send_files("revivals.jsonl")
        self.send_files("boundaries/*/samples/*.jsonl")

    def send_files(self, pattern: str) -> None:
        for path in sorted(self.folder.glob(pattern)):
            name = path.relative_to(self.folder)
            if path.is_file() and path.suffix != ".tmp":
                stamp = file_stamp(path)
                if self.cursor.stamps.get(str(name)) != stamp:
                    parent = None if name.parent == Path(".") else name.parent.as_posix()
                    self.client.log_artifact(self.cursor.run_id, str(path), parent)
                    self._stamp(str(name), stamp)

    def send_status(self, status: str, *, closing: bool) -> None:
        """``running`` and ``missing`` work is KILLED once nothing works on it any more."""
        unfinished = "KILLED" if closing else "RUNNING"
        now = {"finished": "FINISHED", "failed": "FAILED"}.get(status, unfinished)
        if self.cursor.stamps.get("status") != now:
            if now == "RUNNING":
                self.client.update_run(self.cursor.run_id, status=now)
            else:
                self.client.set_terminated(self.cursor.run_id, status=now)
            self._stamp("status", now)

    def _send_metrics(self, new: Iterable[Point]) -> None:
        from mlflow.entities import Metric

        metrics = [
            Metric(clean(name), value, int(time * 1000), tokens)
            for name, value, time, tokens in new
            if math.isfinite(value)
        ]
        for chunk in chunks(metrics, BATCH_METRICS):
            self.client.log_batch(self.cursor.run_id, metrics=chunk)

    def _stamp(self, key: str, stamp: str) -> None:
        self.cursor.stamps[key] = stamp
        self._save()

    def _save(self) -> None:
        path = self.folder / CURSOR_FILE
        temporary = path.with_name(CURSOR_FILE + ".tmp")
        temporary.write_text(json.dumps(asdict(self.cursor)))
        os.replace(temporary, path)


def _experiment(client: Any, study: StudyConfig, uri: str) -> str:
    """Its id. A database keeps no artifacts: they go to ``runs_dir``."""
    name = study.tracking.experiment or study.name
    found = client.get_experiment_by_name(name)
    if found is not None:
        return found.experiment_id
    artifacts = (Path(study.runs_dir) / "mlartifacts").resolve().as_uri()
    return client.create_experiment(name, artifacts if uri.startswith("sqlite:") else None)
