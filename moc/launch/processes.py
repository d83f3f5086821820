"""Runs as processes of this machine, so many at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import psutil
import torch

from moc.config.schema import StudyConfig
from moc.errors import ConfigError
from moc.plan.study_plan import plan_study
from moc.run.arm_seed import ArmSeed
from moc.store.rundir import StudyDir
from moc.text import human
from moc.train.strategies import accelerator_of, total_devices

_LIBRARIES_BYTES = 600_000_000  # of every process, before it has a model


class Processes:
    """
    Args:
        at_once: how many runs.

    Raises:
        ConfigError: if this machine has no room for them.
    """

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
        arms = plan_study(study).arms.values()
        needed = _LIBRARIES_BYTES
        if accelerator_of(study.trainer) == "cpu":
            needed += max(arm.state_bytes + arm.activation_bytes for arm in arms)
        if at_once * needed > (total := psutil.virtual_memory().total):
            raise ConfigError(
                f"{words}: 'moc plan' expects about {human(needed, 'B')} of memory for a run, and "
                f"this machine has {human(total, 'B')}; at most processes:{total // needed}"
            )
        self._gpus: list[str] | None = None  # that no run has
        if accelerator_of(study.trainer) != "cpu":
            self._gpus = _gpus()
            if at_once > len(self._gpus):
                raise ConfigError(f"{words}: this machine has {len(self._gpus)} GPUs, one for each")

    def submit(self, run: ArmSeed) -> _Process:
        run.dir.path.mkdir(parents=True, exist_ok=True)
        # -P: nothing is imported from where the user happens to be
        command = [sys.executable, "-P", "-m", "moc.launch.worker"]
        command += [str(StudyDir(run.study.dir).config), run.name, str(run.seed)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(self.cpus)}
        gpu = None
        if self._gpus is not None:
            gpu = environment["CUDA_VISIBLE_DEVICES"] = self._gpus.pop()
        with run.dir.log.open("ab") as log:
            process = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for whoever started it
            )
        return _Process(process, gpu, self._gpus)


class _Process:
    def __init__(
        self, process: subprocess.Popen[bytes], gpu: str | None, free_gpus: list[str] | None
    ) -> None:
        self.where = f"process {process.pid}"
        self._process, self._gpu, self._free_gpus = process, gpu, free_gpus

    def exit_code(self) -> int | None:
        code = self._process.poll()
        if code is not None and self._gpu is not None and self._free_gpus is not None:
            self._free_gpus.append(self._gpu)
            self._gpu = None
        return code

    def stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Its loaders, too."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)


def _num_cores() -> int:
    """Those that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _gpus() -> list[str]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",") if visible else [str(i) for i in range(torch.cuda.device_count())]
