"""MLflow's pages for the results."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from types import FrameType
from typing import Any

from moc.config.secrets import hide_uri, public_uris
from moc.tracking.mirror import restore
from moc.tracking.server import MLFLOW_ENVIRONMENT, default_uri
from moc.tracking.views import pages


def serve_ui(runs_dir: Path, uri: str | None = None, port: int = 5000) -> int:
    """Serve MLflow's pages on 127.0.0.1 until Ctrl-C, for ``uri`` or the database in ``runs_dir``.

    A database that is damaged is set aside and made anew from the studies in ``runs_dir``.

    Returns:
        The exit code; not 0 after one line that says what is wrong.
    """
    uri = uri or default_uri(runs_dir)
    hide_uri(uri)
    if uri.startswith(("http://", "https://")):
        print(f"MLflow is served at {public_uris(uri)}")
        return 0
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            print(f"moc: port {port}: {error.strerror}; choose another one", file=sys.stderr)
            return 1
    if (problem := restore(runs_dir, uri)) is not None:
        print(f"moc: {problem}", file=sys.stderr)
        return 1
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--workers", "1", "--uvicorn-opts", "--log-level warning"]
    # by the environment: a command line is public, and the URI may hold a password
    environment = MLFLOW_ENVIRONMENT | dict(os.environ) | {"MLFLOW_BACKEND_STORE_URI": uri}
    # in a session of its own, so that Ctrl-C reaches it once, through us
    server = subprocess.Popen(command, env=environment, start_new_session=True)

    def stop(number: int = 0, frame: FrameType | None = None) -> None:
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGTERM)

    previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        _announce(server, f"http://127.0.0.1:{port}")
        code = server.wait()
    finally:
        stop()  # whatever happened here, such as a closed terminal
        for number, handler in previous.items():
            signal.signal(number, handler)
    return 0 if code in (0, -signal.SIGTERM, 128 + signal.SIGTERM) else 1


def _announce(server: subprocess.Popen[bytes], url: str) -> None:
    """Print where the pages are, and each study's, once they can be opened."""
    print(f"MLflow: {url} (Ctrl-C stops it)", flush=True)
    while server.poll() is None:
        try:
            newest = {"max_results": 10, "order_by": ["last_update_time DESC"]}
            found = _ask(url, "experiments/search", newest).get("experiments", [])
            break
        except OSError:  # not up yet
            time.sleep(0.3)
    else:
        return
    where = [experiment["experiment_id"] for experiment in found]
    wanted = {"experiment_ids": where, "filter": "tags.level = 'study'", "max_results": 10}
    for run in _ask(url, "runs/search", wanted).get("runs", []) if where else []:
        info = run["info"]
        print(f"  {info['run_name']}:", flush=True)
        for what, page in pages(info["run_name"], info["experiment_id"], info["run_id"]).items():
            print(f"    {what:7} {url}/{page}", flush=True)


def _ask(url: str, method: str, question: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(
        f"{url}/api/2.0/mlflow/{method}",
        data=json.dumps(question).encode(),
        headers={"content-type": "application/json"},
    )
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with direct.open(request, timeout=5) as answer:
        return json.load(answer)
