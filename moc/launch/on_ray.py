"""Runs as Ray tasks, on a cluster or on one that this command starts on this machine."""

from __future__ import annotations

import signal
import socket
from collections.abc import Sequence
from typing import Any

import ray

from moc.config.schema import StudyConfig
from moc.config.secrets import interpolated_variables
from moc.errors import ConfigError
from moc.launch.launcher import End
from moc.launch.needs import Needs
from moc.launch.on_node import STOPPED, run_for_ray
from moc.launch.task import Task

_CONNECT_SEC = 10.0


class OnRay:
    """
    Args:
        address: of a cluster (``host:port``, ``ray://...``); None: that of ``RAY_ADDRESS``, else
            one of its own.

    Raises:
        ConfigError: if there is no cluster, or no node of it has what a run needs.
    """

    is_here = False
    detaches = False  # Ray ends the tasks of a command that is gone

    def __init__(self, address: str | None, study: StudyConfig) -> None:
        needs = Needs.of(study)
        self.at_once, self.cpus = study.launch.at_once or 10_000, needs.cpus
        _check_reachable(address)
        try:
            ray.init(address, log_to_driver=False, include_dashboard=False, logging_level="ERROR")
        except (ConnectionError, ValueError, RuntimeError) as error:
            said = str(error).strip().splitlines()
            raise ConfigError(f"--launch ray: {said[0] if said else 'no cluster'}") from error
        wanted = {"CPU": needs.cpus, "GPU": needs.gpus, "memory": needs.memory_bytes}
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if not any(all(node.get(k, 0) >= v for k, v in wanted.items()) for node in nodes):
            raise ConfigError(
                f"--launch ray: no node has {needs.cpus} CPUs, {needs.gpus:g} GPUs and "
                f"{needs.memory_bytes / 1e9:.1f} GB for a run; lower launch.cpus, launch.gpus or "
                "launch.memory_gb"
            )
        # One that dies is submitted again by ``moc.launch.supervise``, which looks at why.
        self._run = ray.remote(
            num_cpus=needs.cpus,
            num_gpus=needs.gpus,
            memory=needs.memory_bytes,
            max_retries=0,
            max_calls=1,
        )(run_for_ray)

    def submit(self, tasks: Sequence[Task]) -> list[_Job]:
        environment = interpolated_variables(tasks[0].study_file.read_text())
        return [_Job(self._run.remote(task, environment)) for task in tasks]


def _check_reachable(address: str | None) -> None:
    """Ray itself would try for minutes."""
    host, _, port = (address or "").rpartition("://")[2].rpartition(":")
    if not port.isdecimal():  # "auto", "local", or nothing
        return
    try:
        socket.create_connection((host, int(port)), _CONNECT_SEC).close()
    except OSError as error:
        raise ConfigError(f"--launch ray: nobody answers at {address} ({error})") from error


class _Job:
    def __init__(self, reference: Any) -> None:
        self.where = f"Ray task {reference.task_id().hex()[:8]}"
        self._reference = reference

    def end(self) -> End | None:
        ready, _ = ray.wait([self._reference], timeout=0)
        if not ready:
            return None
        try:
            return End(ray.get(self._reference))
        except ray.exceptions.TaskCancelledError:
            return End(STOPPED, "it was cancelled in Ray", again=False)
        except ray.exceptions.RayTaskError as error:  # of ours, on the node
            return End(1, str(error).strip().splitlines()[-1])
        except ray.exceptions.RayError as error:  # the node, or what ran it there, is gone
            return End(-signal.SIGKILL, f"Ray says {type(error).__name__}")

    def stop(self) -> None:
        ray.cancel(self._reference, force=False)

    def kill(self) -> None:
        ray.cancel(self._reference, force=True)
