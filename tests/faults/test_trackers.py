"""Two real trackers: a server before PostgreSQL, and one sqlite file with three writers."""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from moc.config.schema import StudyConfig
from moc.store.journal import Journal
from moc.tracking.content import Cursor
from moc.tracking.mirror import Tracker
from moc.tracking.server import MLFLOW_ENVIRONMENT
from tests.support.fake_runs import fake_study, write_run, write_study
from tests.support.trackers import check_sent_once, fork, free_port, logged, track, wait

DEBIAN = Path("/usr/lib/postgresql")
START_SEC = 120  # of a server, on a busy machine


class Postgres:
    """A cluster of its own in a temporary folder, as a user that is not root."""

    def __init__(self, bin: Path) -> None:
        self.bin, self.port = bin, free_port()
        self.folder = Path(tempfile.mkdtemp(prefix="moc-postgres-"))
        self.user = pwd.getpwnam("postgres").pw_uid if os.getuid() == 0 else os.getuid()
        os.chown(self.folder, self.user, -1)
        self._call("initdb", "-D", str(self.folder / "data"), "-U", "moc", "-A", "trust")
        self.start()
        self._call("createdb", "-h", "127.0.0.1", "-p", str(self.port), "-U", "moc", "mlflow")
        self.uri = f"postgresql+psycopg2://moc@127.0.0.1:{self.port}/mlflow"

    def start(self) -> None:
        options = f"-p {self.port} -k {self.folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        log = str(self.folder / "log")
        self._call("pg_ctl", "-D", str(self.folder / "data"), "-o", options, "-l", log, "start")

    def cut_off(self) -> None:
        self._call("pg_ctl", "-D", str(self.folder / "data"), "-m", "immediate", "stop")

    def close(self) -> None:
        self.cut_off()
        shutil.rmtree(self.folder)

    def _call(self, *command: str) -> None:
        program = [str(self.bin / command[0]), *command[1:]]
        subprocess.run(
            program, user=self.user, cwd="/", check=True, stdout=subprocess.DEVNULL, timeout=60
        )


class MlflowServer:
    def __init__(self, database: str, folder: Path) -> None:
        self.port, self.database, self.folder = free_port(), database, folder
        self.uri = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"]
        command += ["--port", str(self.port), "--workers", "1"]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        environment = MLFLOW_ENVIRONMENT | dict(os.environ)
        environment["MLFLOW_BACKEND_STORE_URI"] = self.database
        with (self.folder / "mlflow.log").open("ab") as log:
            self.process = subprocess.Popen(
                command, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + START_SEC
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                urllib.request.urlopen(f"{self.uri}/health", timeout=5).close()
                return
            except OSError:  # not up yet
                time.sleep(0.2)
        pytest.fail(f"no MLflow: {(self.folder / 'mlflow.log').read_text()[-2000:]}")

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    found = sorted(DEBIAN.glob("*/bin"), reverse=True)
    if not found:
        pytest.skip("PostgreSQL is not installed")
    if importlib.util.find_spec("psycopg2") is None:
        pytest.skip("psycopg2 is not installed")
    server = Postgres(found[0])
    yield server
    server.close()


@pytest.fixture(scope="module")
def server(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    server = MlflowServer(postgres.uri, tmp_path_factory.mktemp("server"))
    yield server
    server.kill()


def test_a_server_restarted_and_its_database_cut_off_in_the_middle_of_a_study(
    postgres: Postgres,
    server: MlflowServer,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """the tracking server down in the middle. Kept: an MLflow server before PostgreSQL is killed,
    started again, and its database cut off; training waits for nothing and every point is there
    once."""
    study = fake_study(tmp_path / "runs", num_steps=(10, 10), arms=("moc",))
    study.tracking.uri = server.uri.replace("//", "//me:planted@")
    write_study(study, runs=False)
    run = write_run(study, "moc", 0, boundaries=1, status="running")
    journal = Journal(run / "metrics.jsonl")
    journal.commit()
    tracker = Tracker(study)
    tracker.start()
    tokens = 1_000_000
    until(lambda: Cursor.load(study.dir).is_complete())
    known = sum(logged(run).values())

    def go_on() -> None:
        nonlocal tokens
        for _ in range(5):
            tokens += 1
            metrics = {"ift/train/loss": tokens / 7, "ift/train/lr": 0.1}
            journal.append({"phase": "ift", "step": tokens, "tokens": tokens, "metrics": metrics})
        journal.commit()
        begun = time.perf_counter()
        tracker.sync()
        assert time.perf_counter() - begun < 0.1

    server.kill()
    go_on()
    until(lambda: tracker._background is not None and tracker._background._error)
    server.start()
    go_on()
    until(lambda: sent_records(run))
    postgres.cut_off()
    go_on()
    until(lambda: tracker._background is not None and tracker._background._error)
    postgres.start()
    go_on()
    message = tracker.close(60)
    for _ in range(3):  # the server may need a moment to find its database again
        if message is not None:
            assert "nothing is lost" in message
            message = track(study)
    assert message is None
    assert sum(logged(run).values()) == known + 4 * 5 * 2
    check_sent_once(study)
    said = "\n".join([*capfd.readouterr(), *caplog.messages])
    assert said.count("training goes on") >= 2
    assert "planted" not in said and "Traceback" not in said and "View run" not in said


def test_three_studies_that_write_to_one_file_at_once(tmp_path: Path) -> None:
    """a locked database. Kept: three studies that write to one sqlite file at once, and make it,
    have one database with every point once."""
    runs_dir = tmp_path / "runs"
    studies = [written(runs_dir, name) for name in ("one", "two", "three")]
    import mlflow  # noqa: F401  # once, and not in each process

    assert [wait(child) for child in [fork(lambda s=s: send(s)) for s in studies]] == [0, 0, 0]
    for study in studies:
        check_sent_once(study)
    assert sorted(path.name for path in runs_dir.glob("mlflow.db*")) == ["mlflow.db"]


def written(runs_dir: Path, name: str) -> StudyConfig:
    study = fake_study(runs_dir, num_steps=(10, 10), arms=("moc",))
    study.name = name
    write_study(study)
    return study


def send(study: StudyConfig) -> None:
    message = track(study, 120)
    assert message is None, message


def sent_records(run: Path) -> bool:
    """Whether MLflow has the whole journal."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return Cursor.load(run).records == sum('"commit"' not in line for line in lines)


def until(condition: Any) -> None:
    deadline = time.monotonic() + 90
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)
