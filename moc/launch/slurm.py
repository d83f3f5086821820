"""Runs as SLURM jobs, through submitit: those that can start together are one array.

A job that comes near its time limit, or is preempted, saves and is queued again by SLURM; one that
dies is submitted again by ``moc.launch.supervise``.
"""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Sequence
from typing import Any

import submitit

from moc.config.schema import StudyConfig
from moc.errors import ConfigError
from moc.launch.launcher import End
from moc.launch.needs import Needs
from moc.launch.on_node import STOPPED, SlurmTask
from moc.launch.task import Task
from moc.store.rundir import StudyDir

_LOOK_SEC = 5.0  # between questions to SLURM, one for all jobs
_SAVE_SEC = 120  # before the time limit
_RESULT_SEC = 10.0  # from a job's end until its result is seen, over a network file system too


class Slurm:
    """
    Args:
        executor: another one of submitit's, for tests without SLURM.

    Raises:
        ConfigError: if SLURM is not here, or does not answer.
    """

    is_here = False
    detaches = True

    def __init__(self, study: StudyConfig, executor: Any = None) -> None:
        needs, launch = Needs.of(study), study.launch
        self.at_once, self.cpus = launch.at_once or 10_000, needs.cpus
        if needs.gpus not in (0, 1):
            raise ConfigError(f"--launch slurm: launch.gpus {needs.gpus:g}: SLURM gives whole ones")
        if executor is None:
            try:
                # how often a job may come to its time limit is not limited: it gets on each time
                executor = submitit.SlurmExecutor(StudyDir(study.dir).slurm, max_num_timeout=10**6)
            except RuntimeError as error:
                raise ConfigError("--launch slurm: there is no SLURM here (srun)") from error
            if _ask("sinfo") is None:  # better known now than when all is prepared
                raise ConfigError("--launch slurm: SLURM does not answer; see what sinfo says")
            settings = {
                "job_name": study.name,
                "time": launch.minutes,
                "cpus_per_task": needs.cpus,
                "mem": f"{needs.memory_bytes // 2**20}MB",
                "gpus_per_node": int(needs.gpus) or None,
                "partition": launch.partition,
                "account": launch.account,
                "array_parallelism": self.at_once,
                "signal_delay_s": _SAVE_SEC,
                "stderr_to_stdout": True,
                # srun does not take it from the job since SLURM 22.05
                "srun_args": [f"--cpus-per-task={needs.cpus}"],
                "additional_parameters": {"requeue": True},
            }
            executor.update_parameters(**{k: v for k, v in settings.items() if v is not None})
        self._executor, self._states = executor, _States()

    def submit(self, tasks: Sequence[Task]) -> list[_Job]:
        try:
            with self._executor.batch():
                jobs = [self._executor.submit(SlurmTask(task)) for task in tasks]
        except submitit.core.utils.FailedJobError as error:
            said = str(error).strip().splitlines()
            raise ConfigError(f"--launch slurm: {said[-1] if said else 'sbatch failed'}") from error
        self._states.ask_again()
        return [_Job(job, self._states) for job in jobs]


class _Job:
    def __init__(self, job: Any, states: _States) -> None:
        self.where = f"job {job.job_id}"
        self._job, self._states = job, states
        self._ended: float | None = None  # seen at
        self._asked_to_stop = False

    def end(self) -> End | None:
        state = self._state()
        if self._job.paths.result_pickle.is_file():
            kind, result = self._job._get_outcome_and_result()
            if kind == "success":
                return End(result)
            return End(1, str(result).strip().splitlines()[-1])
        if state is None:
            self._ended = None
            return None
        self._ended = self._ended or time.monotonic()
        if state == "CANCELLED":  # by somebody who meant it
            return End(STOPPED, "it was cancelled in SLURM", again=False)
        if not self._asked_to_stop and time.monotonic() - self._ended < _RESULT_SEC:
            return None
        return End(-signal.SIGKILL, f"SLURM says {state}")

    def stop(self) -> None:
        self._asked_to_stop = True
        if isinstance(self._job, submitit.SlurmJob):
            # what waits is taken out; what runs has the time that it needs to save
            _ask("scancel", "--state=PENDING", self._job.job_id)
            _ask("scancel", "--signal=TERM", self._job.job_id)
            self._states.ask_again()
        else:
            self._job.cancel()

    def kill(self) -> None:
        if isinstance(self._job, submitit.SlurmJob) and self.end() is None:
            _ask("scancel", self._job.job_id)

    def _state(self) -> str | None:
        """How it ended; None while it waits or runs, or as long as SLURM does not answer."""
        if isinstance(self._job, submitit.SlurmJob):
            return self._states.ended(self._job.job_id)
        return str(self._job.state) if self._job.done() else None


class _States:
    """Of all jobs of this user, as SLURM knows them. ``sacct`` would need a database that small
    clusters do without."""

    def __init__(self) -> None:
        self._by_job: dict[str, str] | None = None
        self._asked = 0.0

    def ask_again(self) -> None:
        self._asked = 0.0

    def ended(self, job: str) -> str | None:
        now = time.monotonic()
        if now - self._asked > _LOOK_SEC:
            self._asked = now
            command = "squeue --me --noheader --array --states=all --format"
            answer = _ask(*command.split(), "%i %T")
            if answer is not None:
                self._by_job = dict(line.split() for line in answer.splitlines())
        if self._by_job is None:
            return None
        state = self._by_job.get(job, "UNKNOWN")  # SLURM forgets what has ended after some minutes
        return state if state in _ENDED else None


# https://slurm.schedmd.com/squeue.html#SECTION_JOB-STATE-CODES
_ENDED = (
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "TIMEOUT",
    "UNKNOWN",
)


def _ask(*command: str) -> str | None:
    """What it prints; None if it fails."""
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout if done.returncode == 0 else None
