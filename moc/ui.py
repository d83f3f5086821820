"""Where the results are served from, and MLflow's pages for them."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import FrameType

from moc.config import StudyConfig

MLFLOW_ENVIRONMENT = {  # of MLflow, read when it is imported; what the user has set stays
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # its own 7 stall for minutes when a server is away
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # ten processes and 2 GB otherwise
}


def tracking_uri(study: StudyConfig) -> str:
    return study.tracking.uri or default_uri(Path(study.runs_dir))


def default_uri(runs_dir: Path) -> str:
    """The database of all studies under ``runs_dir``."""
    return f"sqlite:///{runs_dir.resolve() / 'mlflow.db'}"


def public_uri(uri: str) -> str:
    """``uri`` without user name and password."""
    return re.sub(r"//[^/@]*@", "//", uri)


def serve_ui(uri: str, port: int = 5000) -> int:
    """Serve MLflow's pages for ``uri`` on 127.0.0.1 until Ctrl-C. Returns the exit code."""
    if uri.startswith(("http://", "https://")):
        print(f"MLflow is served at {public_uri(uri)}")
        return 0
    database = Path(uri.removeprefix("sqlite:///"))
    if uri.startswith("sqlite:") and not database.is_file():
        print(f"no results in {database} yet; run a study first", file=sys.stderr)
        return 1
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            print(f"port {port}: {error.strerror}; choose another one", file=sys.stderr)
            return 1
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--uvicorn-opts", "--log-level warning"]
    print(f"MLflow: http://127.0.0.1:{port} (ready in a few seconds; Ctrl-C stops it)", flush=True)
    # in a session of its own, so that Ctrl-C reaches it once, through us
    server = subprocess.Popen(
        command, env=MLFLOW_ENVIRONMENT | dict(os.environ), start_new_session=True
    )

    def stop(number: int, frame: FrameType | None) -> None:
        os.killpg(server.pid, signal.SIGTERM)

    previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        code = server.wait()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    return 0 if code in (0, -signal.SIGTERM, 128 + signal.SIGTERM) else 1
