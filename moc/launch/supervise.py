"""Runs as tasks of a launcher: started, watched, and started again when they die."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

from moc.errors import RunFailed, StudyInterrupted, Terminated
from moc.launch.launcher import Job, Launcher
from moc.run.arm_seed import ArmSeed
from moc.run.execute import is_complete, rescore
from moc.run.shared_start import shared_phases
from moc.run.tools import Tools
from moc.store.files import read_sound_json
from moc.store.lock import holder_of
from moc.verbs.status import StatusDisplay

POLL_SEC = 0.5
_SHOW_SEC = 2.0
_SYNC_SEC = 10.0
_SAVE_SEC = 120.0  # for a run that was asked to stop, before it is ended where it is


def supervise(
    launcher: Launcher, runs: Sequence[ArmSeed], asked: Sequence[ArmSeed], tools: Tools
) -> RunFailed | None:
    """Bring those of a study's ``runs`` that are ``asked`` for to their end as tasks, and score the
    others again where they were last scored in another way. Runs that other processes have in hand
    are waited for.

    Returns:
        What is to be said once there is a report, if a run cannot be brought to its end.

    Raises:
        StudyInterrupted: when asked to stop. The runs have saved and ended, or go on if the user
            at the terminal said so.
    """
    for run in runs:
        if run not in asked:
            rescore(run, tools)
    supervisor = _Supervisor(launcher, asked, tools)
    display = StatusDisplay(asked[0].study.dir)
    try:
        with display:
            supervisor.bring_to_their_end(display)
    except KeyboardInterrupt as error:
        supervisor.leave(signal.SIGTERM if isinstance(error, Terminated) else signal.SIGINT)
    except BaseException:
        supervisor.cancel()
        raise
    if not (failed := supervisor.failed):
        return None
    first = failed[0]
    return RunFailed(
        f"{len(failed)} of {len(asked)} runs failed; the first: {first.run}: {first.said} "
        f"(all it printed: {first.run.dir.log})"
    )


@dataclass
class _Task:
    run: ArmSeed
    job: Job | None = None
    log_begins: int = 0  # bytes of the log that are of earlier tries
    tries: int = 0
    said: str = ""  # why the last try ended
    passed_over: bool = False  # others have it in hand, and that was said


class _Supervisor:
    def __init__(self, launcher: Launcher, asked: Sequence[ArmSeed], tools: Tools) -> None:
        self.launcher, self.tools = launcher, tools
        # An arm's seeds before the next arm: what arms share is there when the next one begins.
        arms = list(asked[0].study.arms)
        self.waiting = [_Task(run) for run in sorted(asked, key=lambda run: arms.index(run.name))]
        self.running: list[_Task] = []
        self.failed: list[_Task] = []

    def bring_to_their_end(self, display: StatusDisplay) -> None:
        shown = synced = time.monotonic()
        while self.waiting or self.running:
            for task in list(self.running):
                self._look_at(task)
            self._start_some()
            now = time.monotonic()
            if now - shown > _SHOW_SEC and display.is_live:
                display.refresh()
                shown = now
            if now - synced > _SYNC_SEC:
                self.tools.sync()
                synced = now
            time.sleep(POLL_SEC)

    def leave(self, number: int) -> NoReturn:
        """
        Args:
            number: the signal that asked to.

        Raises:
            StudyInterrupted: always.
        """
        many = f"{len(self.running)} run{'s' if len(self.running) != 1 else ''}"
        if number == signal.SIGINT and _asks_to_detach(many):
            raise StudyInterrupted(f"detached; {many} will end without this command")
        self.cancel()
        raise StudyInterrupted(f"stopped; {many} saved and ended", number)

    def cancel(self) -> None:
        """What was started saves and ends."""
        jobs = [task.job for task in self.running if task.job is not None]
        for job in jobs:
            job.stop()
        deadline = time.monotonic() + _SAVE_SEC
        while any(job.exit_code() is None for job in jobs) and time.monotonic() < deadline:
            time.sleep(POLL_SEC)
        for job in jobs:
            job.kill()

    def _start_some(self) -> None:
        held = [task for task in self.waiting if holder_of(task.run.dir.path) is not None]
        for task in held:
            if not task.passed_over:
                task.passed_over = True
                holder = holder_of(task.run.dir.path)
                print(f"{task.run} | waiting: it is held by {holder}", flush=True)
        for task in [task for task in self.waiting if task not in held]:
            if len(self.running) + len(held) >= self.launcher.at_once:
                return
            if is_complete(task.run, self.tools):
                self.waiting.remove(task)
                print(f"{task.run} | done", flush=True)
            elif not any(_shares_more(task.run, other.run) for other in [*self.running, *held]):
                self._start(task)

    def _start(self, task: _Task) -> None:
        log = task.run.dir.log
        task.log_begins = log.stat().st_size if log.is_file() else 0
        task.tries += 1
        task.job = self.launcher.submit(task.run)
        self.waiting.remove(task)
        self.running.append(task)
        print(f"{task.run} | {task.job.where}", flush=True)

    def _look_at(self, task: _Task) -> None:
        """What became of it, and what to do about that."""
        assert task.job is not None
        code = task.job.exit_code()
        if code is None:
            return
        self.running.remove(task)
        if code == 0:
            print(f"{task.run} | done", flush=True)
            return
        if code == 1 and holder_of(task.run.dir.path) is not None:  # somebody was faster
            task.tries -= 1
            self.waiting.append(task)
            return
        before, task.said = task.said, _why(task, code)
        retries = task.run.study.launch.retries
        # A mistake of the user's stays one, and so does too high a learning rate, and what ends
        # twice in the same words; not a process that was killed, which said nothing.
        lasting = code == 2 or (code == 1 and task.said == before) or _diverged(task.run)
        if lasting or task.tries > retries:
            self.failed.append(task)
            print(f"{task.run} | failed: {task.said}", flush=True)
        else:
            self.waiting.insert(0, task)
            print(f"{task.run} | again, {task.tries} of {retries}: {task.said}", flush=True)


def _shares_more(run: ArmSeed, other: ArmSeed) -> bool:
    """Whether ``run``, which is new, would train what ``other`` is just training for both."""
    if run.seed != other.seed or run.dir.boundaries() or run.dir.checkpoints.is_dir():
        return False
    common = [mine == theirs for mine, theirs in zip(run.hashes, other.hashes, strict=False)]
    num_phases = (common.index(False) if False in common else len(common)) - 1
    return num_phases > 0 and shared_phases(run.hashes, other.hashes, other.dir) < num_phases


def _diverged(run: ArmSeed) -> bool:
    return read_sound_json(run.dir.info).get("status") == "diverged"


def _why(task: _Task, code: int) -> str:
    if code < 0:
        return f"signal {signal.Signals(-code).name} ended it"
    with task.run.dir.log.open("rb") as log:
        log.seek(task.log_begins)
        lines = log.read().decode(errors="replace").strip().splitlines()
    return lines[-1].removeprefix("moc: ") if lines else f"exit code {code}"


def _asks_to_detach(many: str) -> bool:
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return False
    try:
        answer = input(f"\n{many} under way. [d]etach: they go on; [c]ancel: they save and end: ")
    except (EOFError, KeyboardInterrupt):
        return False
    return answer.strip().lower().startswith("d")
