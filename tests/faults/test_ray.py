"""Runs as Ray tasks: their launcher is killed, and then one of two nodes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from moc.errors import ConfigError
from moc.launch.build import build_launcher
from moc.store.lock import holder_of
from moc.store.rundir import RunDir
from tests.support.helpers_training import tiny_study
from tests.support.launched import (
    check_same,
    ends_well,
    launching,
    runs_of,
    trains,
    wait_for,
)

ray = pytest.importorskip("ray", reason="pip install ray")


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Two nodes of a CPU each, on this machine."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_worker_niceness", "0")  # other tests would take all the time
    node = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False}
    found = Cluster(initialize_head=True, head_node_args=node)
    try:
        found.add_node(**node)
        yield found
    finally:
        found.shutdown()


def test_the_launcher_and_a_node_are_killed(tmp_path: Path, cluster: Any, serial: Path) -> None:
    """a launcher of Ray tasks killed; a Ray node killed. Kept: runs whose launcher or node is gone
    save and end, the same command goes on, what was on the node is started on another, and the
    weights are those of one process, to the bit."""
    where = f"ray:{cluster.address}"
    with launching(tmp_path, "first", where) as launcher:
        first = trains(tmp_path, "moc")
        launcher.kill()
        launcher.wait()
        wait_for(lambda: all(ended(run) for run in runs_of(tmp_path)) or None, "they do not end")
    with launching(tmp_path, "second", where) as launcher:
        trains(tmp_path, "moc", but=first)
        trains(tmp_path, "backbone")
        cluster.remove_node(cluster.worker_nodes.copy().pop(), allow_graceful=False)
        ends_well(launcher, tmp_path / "second")
    assert "seed 0 | again, 1 of 3: Ray says" in (tmp_path / "second").read_text()
    check_same(tmp_path, serial)


def ended(run: RunDir) -> bool:
    return holder_of(run.path) is None


def test_a_run_that_fits_on_no_node(tmp_path: Path, cluster: Any) -> None:
    study = tiny_study(tmp_path, "launch.cpus=2")
    try:
        with pytest.raises(ConfigError, match=r"--launch ray: no node has 2 CPUs, 0 GPUs and 0\.9"):
            build_launcher(f"ray:{cluster.address}", study)
    finally:
        ray.shutdown()


def test_no_cluster_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--launch ray: nobody answers at 127.0.0.1:1 "):
        build_launcher("ray:127.0.0.1:1", tiny_study(tmp_path))
