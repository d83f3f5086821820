"""Runs as processes of this machine, so many at once."""

from __future__ import annotations

import multiprocessing
import multiprocessing.forkserver
import multiprocessing.process
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.context import ForkServerContext, ForkServerProcess

import psutil
import torch

from moc.config.schema import StudyConfig
from moc.errors import ConfigError
from moc.launch.launcher import End
from moc.launch.needs import LIBRARIES_BYTES, expected_bytes
from moc.launch.task import Task
from moc.launch.worker import run_forked
from moc.text import human
from moc.train.strategies import accelerator_of, total_devices


class Processes:
    """
    Args:
        at_once: how many runs.

    Raises:
        ConfigError: if this machine has no room for them.
    """

    is_here = True
    detaches = True

    def __init__(self, at_once: int, study: StudyConfig) -> None:
        cores = _num_cores()
        self.at_once = at_once
        self.cpus = study.launch.cpus or max(1, cores // at_once)
        words = f"--launch processes:{at_once}"
        if total_devices(study.trainer) > 1:
            raise ConfigError(f"{words}: each run has one device; set trainer.devices=1")
        if at_once * self.cpus > cores:
            remedy = f"at most processes:{cores // self.cpus}" if cores >= self.cpus else "lower it"
            raise ConfigError(
                f"{words}: with launch.cpus {self.cpus} that is {at_once * self.cpus} threads for "
                f"{cores} cores, and threads that wait for a core hold up the others; {remedy}"
            )
        on_cpu = accelerator_of(study.trainer) == "cpu"
        needed = expected_bytes(study) if on_cpu else LIBRARIES_BYTES
        if at_once * needed > (total := psutil.virtual_memory().total):
            raise ConfigError(
                f"{words}: 'moc plan' expects about {human(needed, 'B')} of memory for a run, and "
                f"this machine has {human(total, 'B')}; at most processes:{total // needed}"
            )
        self._gpus: list[str] | None = None  # that have room for a run, once per run
        if not on_cpu:
            share = study.launch.gpus or 1
            self._gpus = _gpus() * int(1 / share)
            if at_once > len(self._gpus):
                raise ConfigError(
                    f"{words}: this machine has {len(_gpus())} GPUs; a run has {share:g}"
                )
        # One process imports everything, once, and is forked for every run. It begins now, while
        # the study is prepared, and has the environment of its start: torch reads the number of
        # threads when it is imported.
        self._server: ForkServerContext = multiprocessing.get_context("forkserver")
        self._server.set_forkserver_preload([run_forked.__module__])
        with _environment(
            {
                "OMP_NUM_THREADS": str(self.cpus),
                "PYTHONSAFEPATH": "1",  # nothing is imported from where the user happens to be
                "PYTORCH_NVML_BASED_CUDA_CHECK": "1",  # after the other check none may fork
                **study.launch.environment,
            }
        ):
            multiprocessing.forkserver.ensure_running()

    def submit(self, tasks: Sequence[Task]) -> Iterator[_Process]:
        for task in tasks:
            environment, gpu = task.environment, None
            if self._gpus is not None:
                gpu = environment["CUDA_VISIBLE_DEVICES"] = self._gpus.pop()
            process = self._server.Process(target=run_forked, args=(task, environment))
            process.start()
            yield _Process(process, gpu, self._gpus)


class _Process:
    def __init__(
        self, process: ForkServerProcess, gpu: str | None, free_gpus: list[str] | None
    ) -> None:
        self.where = f"process {process.pid}"
        self._process, self._gpu, self._free_gpus = process, gpu, free_gpus
        # this command may end before it, and must not wait for it then
        multiprocessing.process._children.discard(process)  # type: ignore[attr-defined]

    def end(self) -> End | None:
        code = self._process.exitcode
        if code is None:
            return None
        if self._gpu is not None and self._free_gpus is not None:
            self._free_gpus.append(self._gpu)
            self._gpu = None
        return End(code)

    def stop(self) -> None:
        if self._process.exitcode is None:
            self._process.terminate()

    def kill(self) -> None:
        """Its loaders, too."""
        if self._process.exitcode is None and self._process.pid is not None:
            with suppress(ProcessLookupError):  # it ended, or has no group of its own yet
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.kill()


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _num_cores() -> int:
    """Those that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _gpus() -> list[str]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",") if visible else [str(i) for i in range(torch.cuda.device_count())]
