"""A tracking server that is away costs no training time and no data."""

from __future__ import annotations

import json
import logging
import re
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import moc.tracking.sender
import moc.tracking.server
from moc.config.schema import StudyConfig
from moc.store.journal import Journal
from moc.tracking.content import NOTE_TAG
from moc.tracking.mirror import Tracker
from moc.tracking.server import default_uri
from tests.conftest import Run
from tests.support.fake_runs import fake_study, write_study
from tests.support.helpers_runs import check_same
from tests.support.helpers_training import write_tiny_study
from tests.support.trackers import check_sent_once, copy_database, free_port, track


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
    """the tracking server down at the start. Kept: no call of training waits; one line says so, and
    the next run sends every point once."""
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
    connect = moc.tracking.server.connect
    monkeypatch.setattr(moc.tracking.server, "connect", lambda _: connect(uri))
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
    """the tracking server down in the middle. Kept: what it has not accepted is sent again, and
    nothing twice."""
    server = FlakyServer(fail_at=3)
    monkeypatch.setattr(moc.tracking.server, "connect", lambda _: server)
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


@pytest.fixture
def hung() -> Iterator[str]:
    """A server that accepts connections and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(64)
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_a_server_that_hangs_holds_nobody_for_long(study: StudyConfig, hung: str) -> None:
    """the tracking server hung. Kept: no call of training waits, and closing gives up in time with
    one line that nothing is lost."""
    study.tracking.uri = hung
    tracker = Tracker(study)
    assert max(timed(tracker.start), *(timed(tracker.sync) for _ in range(50))) < 0.1
    begin = time.perf_counter()
    message = tracker.close(0.5)
    assert time.perf_counter() - begin < 1
    assert message is not None and "nothing is lost" in message and message.count("\n") == 0


@pytest.mark.parametrize("fault", ["away", "hung"])
def test_a_run_ends_as_if_it_were_not_tracked(
    tmp_path: Path,
    cache: Path,
    in_child: Run,
    undisturbed: dict[str, Any],
    hung: str,
    fault: str,
) -> None:
    """the tracking server down at the start; the tracking server hung. Kept: the run trains to the
    same weights and exits 0, with two lines about the server."""
    uri = hung if fault == "hung" else f"http://127.0.0.1:{free_port()}"
    log = tmp_path / "log"
    argv = ["run", str(write_tiny_study(tmp_path)), "--arms", "moc", f"cache_dir={cache}"]
    codes = in_child(
        "tracked_command",
        log=log,
        env=[{"MLFLOW_HTTP_REQUEST_TIMEOUT": "1", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}],
        argv=[*argv, f"tracking.uri={uri}"],
    )
    text = log.read_text()
    assert codes == [0], text
    check_same(tmp_path, undisturbed)
    said = [line for line in text.splitlines() if "MLflow at" in line]
    assert len(said) == 2 and "training goes on" in said[0] and "nothing is lost" in said[1]
    assert "Traceback" not in text and "Retrying" not in text


BROKEN: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "junk": lambda content: b"\x80\x00junk" * 9,
    "no object": lambda content: b"[1, 2]",
    "another count": lambda content: re.sub(rb'"records": \d+', b'"records": 15', content),
    "another uuid": lambda content: re.sub(rb'"uuid": "\w{8}', b'"uuid": "00000000', content),
    "another run": lambda content: re.sub(rb'"run_id": "\w{8}', b'"run_id": "00000000', content),
}


@pytest.fixture(scope="module")
def sent(tmp_path_factory: pytest.TempPathFactory) -> StudyConfig:
    """A study that is half sent: points have been added since."""
    study = fake_study(tmp_path_factory.mktemp("sent") / "runs", num_steps=(10, 10), arms=("moc",))
    write_study(study)
    copy_database(Path(study.runs_dir) / "mlflow.db")
    assert track(study) is None
    return study


@pytest.mark.parametrize("how", BROKEN)
def test_a_damaged_cursor_is_made_anew(
    sent: StudyConfig, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    """small damaged files. Kept: what tracking.json said is found again in MLflow by the uuids of
    the runs: no run is made twice, and every point is there once."""
    journal = Journal(sent.dir / "arms/moc/seed-0/metrics.jsonl")
    for step in range(3):
        metrics = {"ift/train/loss": step / 7}
        journal.append({"phase": "ift", "step": 99, "tokens": 9_000 + step, "metrics": metrics})
    journal.commit()
    for path in (sent.dir, sent.dir / "arms/moc/seed-0"):
        cursor = path / "tracking.json"
        broken = BROKEN[how](cursor.read_bytes())
        assert broken != cursor.read_bytes()
        cursor.write_bytes(broken)
    assert track(sent) is None
    check_sent_once(sent)
    said = [text for text in caplog.messages if "tracking.json is damaged" in text]
    assert len(said) == 2 or how in ("another count", "another uuid", "another run")


def test_a_note_of_a_person_outlives_a_lost_cursor(sent: StudyConfig) -> None:
    client = moc.tracking.server.connect(default_uri(Path(sent.runs_dir)))
    (sent.dir / "tracking.json").unlink()
    run_id = next(
        run.info.run_id
        for run in client.search_runs([client.get_experiment_by_name("fake").experiment_id])
        if run.data.tags["level"] == "study"
    )
    client.set_tag(run_id, NOTE_TAG, "My own words")
    assert track(sent) is None
    assert client.get_run(run_id).data.tags[NOTE_TAG] == "My own words"


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
        data = type("Data", (), {"params": {}, "tags": {}})
        return type("Run", (), {"info": type("Info", (), {"run_id": run_id}), "data": data})
