"""One folder and its MLflow run: whatever the server does not have yet is sent."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from moc.config.identity import config_hash
from moc.config.schema import StudyConfig
from moc.store.files import PARTIAL
from moc.store.journal import read
from moc.tracking import content
from moc.tracking.content import Cursor, Point

log = logging.getLogger(__name__)

UUID_TAG = "run_uuid"  # ours, in the files: the same run directory is the same MLflow run
PARENT_TAG = "mlflow.parentRunId"
NOTE_HASH_TAG = "description_hash"
BATCH_PARAMS = 100
BATCH_METRICS = 1000
BLOCK_RECORDS = 200  # journal records between two moves of the cursor


class Sender:
    """One folder and its MLflow run. Every ``send`` skips what the server already has."""

    def __init__(self, client: Any, folder: Path, known: set[str], run_uuid: str = "") -> None:
        self.client, self.folder, self.known = client, folder, known
        self.cursor = Cursor.load(folder, run_uuid)

    def open(
        self,
        experiment_id: str,
        name: str,
        tags: dict[str, str],
        start: float,
        children: Iterable[str] = (),
    ) -> None:
        """Find the run by our uuid or create it; a run not met before is sent from the start.

        Args:
            start: Unix seconds, of the work, whenever it is sent.
            children: uuids of the runs below it, to find it by if its own is lost.
        """
        from mlflow.entities import RunTag

        if self.cursor.run_id in self.known:
            return
        found = self._search(experiment_id, self.cursor.uuid)
        if found is None and not self.cursor.run_id:
            found = self._parent_of(experiment_id, children)
        self.cursor.save(self.folder)  # the uuid, before anything carries it
        if found is not None:
            run_id = found.info.run_id
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
        self._send_description(content.description(study))
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
            if path.is_file() and path.suffix != PARTIAL:
                stamp = content.file_stamp(path)
                if self.cursor.stamps.get(str(name)) != stamp:
                    parent = None if name.parent == Path(".") else name.parent.as_posix()
                    self.client.log_artifact(self.cursor.run_id, str(path), parent)
                    self._stamp(str(name), stamp)

    def send_status(self, status: str, ended: float, *, closing: bool) -> None:
        """Work of another status than these three is KILLED once nothing works on it any more.
        ``ended`` in Unix seconds."""
        unfinished = "KILLED" if closing else "RUNNING"
        now = {"finished": "FINISHED", "failed": "FAILED", "diverged": "FAILED"}.get(
            status, unfinished
        )
        if self.cursor.stamps.get("status") != now:
            if now == "RUNNING":
                self.client.update_run(self.cursor.run_id, status=now)
            else:
                self.client.set_terminated(self.cursor.run_id, now, int(ended * 1000))
            self._stamp("status", now)

    def _send_description(self, described: str) -> None:
        """Unless a person has written there: MLflow keeps beside it what we wrote last."""
        from mlflow.entities import RunTag

        stamp = config_hash(described)
        sent = self.cursor.stamps.get("description")
        if stamp == sent:
            return
        tags = self.client.get_run(self.cursor.run_id).data.tags
        there = tags.get(content.NOTE_TAG)
        if there is None or config_hash(there) == tags.get(NOTE_HASH_TAG, sent):
            written = [RunTag(content.NOTE_TAG, described), RunTag(NOTE_HASH_TAG, stamp)]
            self.client.log_batch(self.cursor.run_id, tags=written)
        self._stamp("description", stamp)

    def _search(self, experiment_id: str, uuid: str) -> Any:
        query = f"tags.{UUID_TAG} = '{uuid}'"
        return next(iter(self.client.search_runs([experiment_id], query, max_results=1)), None)

    def _parent_of(self, experiment_id: str, children: Iterable[str]) -> Any:
        """The run above the first of ``children`` that MLflow knows; its uuid is ours again."""
        for uuid in children:
            child = self._search(experiment_id, uuid)
            if child is not None and (above := child.data.tags.get(PARENT_TAG)):
                parent = self.client.get_run(above)
                if parent.info.lifecycle_stage == "active":
                    self.cursor = Cursor(parent.data.tags.get(UUID_TAG, self.cursor.uuid))
                    return parent
        return None

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
