"""MLflow's sqlite file: whole, or set aside and made anew.

MLflow makes its database in seconds and in many transactions: a kill in between leaves a file that
it can neither use nor finish. So it is made beside its name and renamed when it is whole.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from datetime import datetime
from pathlib import Path
from urllib.parse import quote

from moc.store.files import PARTIAL, sync_path

_BUSY_SEC = 10.0
_COMPANIONS = ("-journal", "-wal", "-shm")  # of an sqlite file: part of what it holds
_NO_DAMAGE = (  # sqlite's codes for what is wrong around a file, not in it
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_NOMEM,
)


def sqlite_file(uri: str) -> Path | None:
    """The file behind a tracking URI; None for a server, or a database in memory."""
    scheme, found, path = uri.partition(":///")
    path = path.partition("?")[0]
    return Path(path) if found and scheme.partition("+")[0] == "sqlite" and path else None


def identity(file: Path) -> tuple[int, int] | None:
    """Tells a file from another one of its name; None if there is none."""
    try:
        stat = file.stat()
    except FileNotFoundError:
        return None
    return stat.st_dev, stat.st_ino


def damage(file: Path) -> str | None:
    """What is wrong with the database in ``file``, in a few words; None if nothing is.

    A value that changed on the disk and is still a value is not seen.

    Raises:
        sqlite3.OperationalError: if it cannot be asked now: somebody holds it.
    """
    try:
        address = f"file:{quote(str(file.resolve()))}?mode=rw"
        with closing(sqlite3.connect(address, uri=True, timeout=_BUSY_SEC)) as database:
            (problem,) = database.execute("PRAGMA integrity_check(1)").fetchone()
            if problem != "ok":
                return " ".join(str(problem).split())
            names = {name for (name,) in database.execute("SELECT name FROM sqlite_master")}
            if not names:
                return "it is empty"
            for table in ("alembic_version", "experiments"):  # the last of both is made last
                if table not in names or not database.execute(f"SELECT 1 FROM {table}").fetchone():
                    return "it is half made"
            if os.access(file, os.W_OK) and os.access(file.parent, os.W_OK):
                # its header may say that it is only to be read
                database.execute("DELETE FROM alembic_version WHERE 0")
    except sqlite3.DatabaseError as error:
        if getattr(error, "sqlite_errorcode", 0) & 0xFF in _NO_DAMAGE:
            raise
        return str(error)
    return None


def reach(uri: str) -> None:
    """Connect to a database once.

    Raises:
        Exception: whatever its driver has to say if that does not work.
    """
    import sqlalchemy

    with sqlalchemy.create_engine(uri, poolclass=sqlalchemy.NullPool).connect():
        pass


def make_database(file: Path) -> None:
    """An empty one, whole or not at all. One process at a time."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(file.name + PARTIAL)
    for leftover in _with_companions(partial):
        leftover.unlink(missing_ok=True)
    artifacts = (file.parent / "mlartifacts").resolve().as_uri()
    SqlAlchemyStore(f"sqlite:///{partial}", artifacts)
    for path in (partial, file.parent):
        sync_path(path)
    os.replace(partial, file)
    sync_path(file.parent)


def set_aside(file: Path) -> Path:
    """Give the database another name, for a person to look at; that name."""
    aside = file.with_name(f"{file.name}.damaged-{datetime.now():%Y%m%d-%H%M%S.%f}")
    for path in _with_companions(file):
        if path.exists():
            os.rename(path, aside.with_name(aside.name + path.name.removeprefix(file.name)))
    return aside


def was_set_aside(file: Path) -> bool:
    return any(file.parent.glob(f"{file.name}.damaged-*"))


def _with_companions(file: Path) -> list[Path]:
    return [*(file.with_name(file.name + end) for end in _COMPANIONS), file]
