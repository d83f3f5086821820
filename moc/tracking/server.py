"""Where results are tracked to: a server, or a database that is made when it is missing."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

from moc.config.schema import StudyConfig
from moc.config.secrets import public_uris
from moc.store.find import study_of
from moc.tracking.content import CURSOR_FILE, Cursor, one_line
from moc.tracking.database import damage, identity, make_database, set_aside, sqlite_file

log = logging.getLogger(__name__)

MLFLOW_ENVIRONMENT = {  # of MLflow, read when it is imported; what the user has set stays
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # its own 7 stall for minutes when a server is away
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # ten processes and 2 GB otherwise
    "MLFLOW_SQLALCHEMYSTORE_POOLCLASS": "NullPool",  # a kept connection outlives its file
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # with user name and password
}
# They tell at length what is raised as well, and said in one line.
_VERBOSE = ("mlflow.store.db.utils", "alembic", "urllib3.connectionpool")


def tracking_uri(study: StudyConfig) -> str:
    return study.tracking.uri or default_uri(Path(study.runs_dir))


def default_uri(runs_dir: Path) -> str:
    """The database of all studies under ``runs_dir``."""
    return f"sqlite:///{runs_dir.resolve() / 'mlflow.db'}"


class Server:
    """What studies under ``runs_dir`` are tracked to, as one process sees it from turn to turn."""

    def __init__(self, uri: str, runs_dir: Path) -> None:
        self.uri, self.runs_dir = str(uri), runs_dir
        self.known: set[str] = set()  # the MLflow runs that were seen there
        self._file = sqlite_file(self.uri)
        self._seen: tuple[int, int] | None = None  # the file, once it was found whole
        self._asked = False  # which studies were not sent to this database

    @contextmanager
    def turn(self) -> Iterator[Any]:
        """An MlflowClient, for as long as no other process has its turn: two of one study, or the
        first two ever, must not create the same things twice."""
        prepare_mlflow()
        place = self.runs_dir if self._file is None else self._file.parent
        place.mkdir(parents=True, exist_ok=True)
        with FileLock(place / ".mlflow.lock"):
            try:
                if self._file is not None:
                    self._look(self._file)
                yield connect(self.uri)
            except BaseException:
                self._seen = None  # look again before the next turn
                self.known.clear()
                raise

    def begun(self) -> list[Path]:
        """Folders of the studies under ``runs_dir`` of which a run has begun."""
        return sorted({file.parents[3] for file in self.runs_dir.glob("*/arms/*/seed-*/run.json")})

    def studies(self, folders: Iterable[Path]) -> Iterator[StudyConfig]:
        """Those in ``folders`` that are tracked here. Loading one takes a second."""
        for folder in folders:
            try:
                study, _ = study_of(folder)
            except ValueError as error:
                log.warning("%s is not tracked: %s", folder, one_line(error))
                continue
            if public_uris(tracking_uri(study)) == public_uris(self.uri):
                yield study

    def unsent(self) -> Iterator[StudyConfig]:
        """Those that were not sent to the end, or not to this database: asked once."""
        if not self._asked:
            self._asked = True
            yield from self.studies(
                folder for folder in self.begun() if not Cursor.load(folder).is_complete()
            )

    def _look(self, file: Path) -> None:
        """See to it that the database is there and whole. One that is made anew has nothing: what
        was sent is forgotten first, so that a kill at any moment leaves it to be sent again."""
        if self._seen is not None and self._seen == identity(file):
            return
        self.known.clear()
        there = file.exists()
        why = damage(file) if there else "missing"
        if why is not None:
            sent = [folder for folder in self.begun() if (folder / CURSOR_FILE).is_file()]
            self._asked = False
            for study in self.studies(sent):
                (study.dir / CURSOR_FILE).unlink(missing_ok=True)
        if there and why is not None:
            aside = set_aside(file)
            log.warning(
                "%s was damaged (%s): it is kept as %s, and made anew from the journals",
                *(file, why, aside.name),
            )
        if why is not None:
            make_database(file)
        self._seen = identity(file)


def prepare_mlflow() -> None:
    """Import it, as we want it: quick to give up, and quiet. Takes seconds."""
    for name, value in MLFLOW_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import mlflow  # noqa: F401

    for logger in _VERBOSE:
        logging.getLogger(logger).setLevel(logging.CRITICAL)


def connect(uri: str) -> Any:
    """An MlflowClient."""
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)
