"""A tracking server that is away costs no training time and no data."""

from __future__ import annotations

import json
import logging
import socket
import time
from pathlib import Path
from typing import Any

import pytest

import moc.tracking.mirror
import moc.tracking.sender
from moc.config.schema import StudyConfig
from moc.tracking.content import public_uri
from moc.tracking.mirror import Tracker, default_uri
from tests.support.fake_runs import fake_study, write_study


@pytest.fixture
def study(tmp_path: Path) -> StudyConfig:
    """A finished study that tracks to a port where nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    study = fake_study(tmp_path, num_steps=(20, 10))
    study.tracking.uri = f"http://user:secret@127.0.0.1:{port}"
    write_study(study)
    return study


def timed(call: Any) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def test_a_server_that_is_away_costs_no_time_and_the_next_run_sends_everything(
    study: StudyConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = Tracker(study)
    slowest = max(timed(tracker.start), *(timed(tracker.sync) for _ in range(50)))
    assert slowest < 0.1
    with caplog.at_level(logging.WARNING):
        message = tracker.close(60)
    assert message is not None and len(message.splitlines()) == 1
    assert str(study.dir) in message and "next run sends it" in message
    assert "secret" not in message + caplog.text
    assert not (study.dir / "arms/moc/seed-0/tracking.json").exists()

    # the same address answers again: here, a database behind it
    uri = default_uri(Path(study.runs_dir))
    connect = moc.tracking.mirror._connect
    monkeypatch.setattr(moc.tracking.mirror, "_connect", lambda _: connect(uri))
    tracker = Tracker(study)
    tracker.start()
    assert tracker.close(120) is None
    client = connect(uri)
    experiment = client.get_experiment_by_name("fake")
    runs = client.search_runs([experiment.experiment_id])
    assert len(runs) == 4
    run = next(run for run in runs if run.data.tags.get("arm") == "moc")
    losses = client.get_metric_history(run.info.run_id, "pretrain/train/loss")
    lines = (study.dir / "arms/moc/seed-0/metrics.jsonl").read_text().splitlines()
    values = [json.loads(line).get("metrics", {}).get("pretrain/train/loss") for line in lines]
    assert [m.value for m in losses] == [value for value in values if value is not None]


def test_a_server_lost_half_way_gets_the_rest_once_without_repeats(
    study: StudyConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = FlakyServer(fail_at=3)
    monkeypatch.setattr(moc.tracking.mirror, "_connect", lambda _: server)
    monkeypatch.setattr(moc.tracking.sender, "BLOCK_RECORDS", 1)
    for _ in range(20):
        tracker = Tracker(study)
        tracker.start()
        if tracker.close(60) is None:
            break
        server.calls = 0
    else:
        pytest.fail("the study was never sent in full")
    assert server.failures > 3
    sent = [(m.key, m.step) for run, m in server.metrics if run == "moc seed 0"]
    lines = (study.dir / "arms/moc/seed-0/metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    expected = [(name, r["tokens"]) for r in records for name in r.get("metrics", {})]
    assert sorted(sent) == sorted(expected)


def test_a_server_that_hangs_holds_nobody_for_long(
    study: StudyConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moc.tracking.mirror, "_connect", lambda _: time.sleep(5))
    tracker = Tracker(study)
    assert timed(tracker.start) < 0.1
    begin = time.perf_counter()
    message = tracker.close(0.3)
    assert time.perf_counter() - begin < 1
    assert message is not None and "nothing is lost" in message


def test_passwords_are_not_shown() -> None:
    assert public_uri("postgresql://me:pass@host/db") == "postgresql://host/db"
    assert public_uri("sqlite:////tmp/a@b/mlflow.db") == "sqlite:////tmp/a@b/mlflow.db"


class FlakyServer:
    """An MLflow client that accepts only so many metric batches before the line drops."""

    def __init__(self, *, fail_at: int) -> None:
        self.fail_at, self.calls, self.failures = fail_at, 0, 0
        self.runs: dict[str, str] = {}  # uuid -> run id
        self.metrics: list[tuple[str, Any]] = []

    def get_experiment_by_name(self, name: str) -> Any:
        return type("Experiment", (), {"experiment_id": "1"})

    def search_runs(self, experiments: list[str], query: str, **options: Any) -> list[Any]:
        uuid = query.split("'")[1]
        return [self._run(self.runs[uuid])] if uuid in self.runs else []

    def create_run(self, experiment: str, *, tags: dict[str, str], run_name: str, **_: Any) -> Any:
        self.runs[tags["run_uuid"]] = run_name
        return self._run(run_name)

    def get_run(self, run_id: str) -> Any:
        return self._run(run_id)

    def log_batch(self, run_id: str, metrics: Any = (), params: Any = (), tags: Any = ()) -> None:
        if metrics:
            self.calls += 1
            if self.calls > self.fail_at:
                self.failures += 1
                raise ConnectionError("the line dropped")
            self.metrics += [(run_id, metric) for metric in metrics]

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None

    def _run(self, run_id: str) -> Any:
        data = type("Data", (), {"params": {}})
        return type("Run", (), {"info": type("Info", (), {"run_id": run_id}), "data": data})
