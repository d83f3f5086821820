"""MLflow in tests: an empty database that is made once, and what a server has of a study."""

from __future__ import annotations

import functools
import os
import signal
import socket
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from moc.config.schema import StudyConfig
from moc.store.journal import read
from moc.tracking.content import clean
from moc.tracking.database import make_database
from moc.tracking.mirror import Tracker
from moc.tracking.server import connect, prepare_mlflow, tracking_uri

Point = tuple[str, float, int, int]  # name, value, time in ms, tokens


@functools.cache
def empty_database() -> bytes:
    """MLflow makes one in seconds; the tests that are not about that copy this one."""
    prepare_mlflow()
    with tempfile.TemporaryDirectory() as folder:
        make_database(Path(folder) / "mlflow.db")
        return (Path(folder) / "mlflow.db").read_bytes()


def copy_database(file: Path) -> None:
    """In the place of ``make_database``."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(empty_database())


def track(study: StudyConfig, timeout_sec: float = 60) -> str | None:
    """One pass; None if MLflow has taken everything."""
    tracker = Tracker(study)
    tracker.start()
    return tracker.close(timeout_sec)


def logged(run: Path) -> Counter[Point]:
    """The points of the committed part of a run's journal."""
    return Counter(
        (clean(name), value, int(record["time"] * 1000), record["tokens"])
        for record in read(run / "metrics.jsonl", committed=True)
        for name, value in record.get("metrics", {}).items()
    )


def check_sent_once(study: StudyConfig, uri: str | None = None) -> None:
    """MLflow has one run for the study, one for each of its runs, and every point once."""
    prepare_mlflow()
    client = connect(uri or tracking_uri(study))
    experiment = client.get_experiment_by_name(study.name)
    runs = client.search_runs([experiment.experiment_id])
    named = Counter(run.data.tags.get("arm", "the study") for run in runs)
    expected = {"the study", *(path.parent.name for path in study.dir.glob("arms/*/seed-0"))}
    assert named == Counter(expected)
    parent = next(run.info.run_id for run in runs if "arm" not in run.data.tags)
    for run in runs:
        if arm := run.data.tags.get("arm"):
            assert run.data.tags["mlflow.parentRunId"] == parent
            found = Counter(
                (m.key, m.value, m.timestamp, m.step)
                for name in run.data.metrics
                for m in client.get_metric_history(run.info.run_id, name)
            )
            wanted = logged(study.dir / "arms" / arm / "seed-0")
            assert found == wanted, (sum(found.values()), sum(wanted.values()))


def in_fork(task: Callable[[], Any]) -> int:
    """The exit code of ``task`` in a process of its own."""
    return wait(fork(task))


def fork(task: Callable[[], Any]) -> int:
    """``task`` in a process of its own, which has imported what this one has; its id."""
    child = os.fork()
    if not child:
        status = 70
        try:
            task()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return child


def wait(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def die(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
