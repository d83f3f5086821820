"""Runs as tasks of a launcher: started, watched, and started again when they die."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn
from uuid import uuid4

from moc.errors import RunFailed, StudyInterrupted, Terminated
from moc.launch.launcher import End, Job, Launcher
from moc.launch.task import Task
from moc.run.arm_seed import ArmSeed
from moc.run.execute import is_complete, rescore
from moc.run.shared_start import shared_phases
from moc.run.tools import Tools
from moc.store.files import read_sound_json
from moc.store.lock import Holder, holder_of, remedy
from moc.store.rundir import StudyDir
from moc.train.signals import stop_signals_held_back
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
class _Watched:
    """One run, and what became of its tries."""

    run: ArmSeed
    key: str  # of its tasks
    job: Job | None = None
    log_begins: int = 0  # bytes of the log that are of earlier tries
    tries: int = 0
    said: str = ""  # why the last try ended
    passed_over: bool = False  # others have it in hand, and that was said

    @property
    def holder(self) -> Holder | None:
        """Who works on it; to be asked when no try of ours does."""
        return holder_of(self.run.dir.path, self.key)


class _Supervisor:
    def __init__(self, launcher: Launcher, asked: Sequence[ArmSeed], tools: Tools) -> None:
        self.launcher, self.tools = launcher, tools
        # An arm's seeds before the next arm: what arms share is there when the next one begins.
        arms = list(asked[0].study.arms)
        asked = sorted(asked, key=lambda run: arms.index(run.name))
        me = uuid4().hex
        self.waiting = [_Watched(run, f"{me}/{run}") for run in asked]
        self.running: list[_Watched] = []
        self.failed: list[_Watched] = []

    def bring_to_their_end(self, display: StatusDisplay) -> None:
        shown = synced = time.monotonic()
        while self.waiting or self.running:
            for one in list(self.running):
                self._look_at(one)
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
        if number == signal.SIGINT and self.launcher.detaches and _asks_to_detach(many):
            raise StudyInterrupted(f"detached; {many} will end without this command")
        self.cancel()
        raise StudyInterrupted(f"stopped; {many} saved and ended", number)

    def cancel(self) -> None:
        """What was started saves and ends."""
        jobs = [one.job for one in self.running if one.job is not None]
        for job in jobs:
            job.stop()
        deadline = time.monotonic() + _SAVE_SEC
        while any(job.end() is None for job in jobs) and time.monotonic() < deadline:
            time.sleep(POLL_SEC)
        for job in jobs:
            job.kill()

    def _start_some(self) -> None:
        held = [one for one in self.waiting if one.holder is not None]
        for one in held:
            if not one.passed_over and (holder := one.holder) is not None:
                one.passed_over = True
                path = one.run.dir.path
                print(f"{one.run} | waiting: held by {holder}{remedy(holder, path)}", flush=True)
        starting: list[_Watched] = []
        for one in [one for one in self.waiting if one not in held]:
            busy = [*self.running, *held, *starting]
            if len(busy) >= self.launcher.at_once:
                break
            if is_complete(one.run, self.tools):
                self.waiting.remove(one)
                print(f"{one.run} | done", flush=True)
            elif not any(_shares_more(one.run, other.run) for other in busy):
                starting.append(one)
        if starting:
            self._start(starting)

    def _start(self, many: list[_Watched]) -> None:
        for one in many:
            log = one.run.dir.log
            one.log_begins = log.stat().st_size if log.is_file() else 0
            one.tries += 1
        with stop_signals_held_back():  # or a job would have begun that nobody knows
            jobs = self.launcher.submit([self._task(one) for one in many])
            for one, job in zip(many, jobs, strict=True):
                one.job = job
                self.waiting.remove(one)
                self.running.append(one)
                print(f"{one.run} | {job.where}", flush=True)

    def _task(self, one: _Watched) -> Task:
        file = StudyDir(one.run.study.dir).config.resolve()
        log = one.run.dir.log.resolve()
        return Task(file, one.run.name, one.run.seed, log, one.key, self.launcher.cpus)

    def _look_at(self, one: _Watched) -> None:
        """What became of it, and what to do about that."""
        assert one.job is not None
        end = one.job.end()
        if end is None:
            return
        self.running.remove(one)
        if end.code == 0:
            print(f"{one.run} | done", flush=True)
            return
        if end.code == 1 and one.holder is not None:  # somebody was faster
            one.tries -= 1
            self.waiting.append(one)
            return
        before, one.said = one.said, _why(one, end)
        retries = one.run.study.launch.retries
        # A mistake of the user's stays one, and so does too high a learning rate, and what ends
        # twice in the same words; not a process that was killed, which said nothing.
        lasting = end.code == 2 or (end.code == 1 and one.said == before) or _diverged(one.run)
        if lasting or not end.again or one.tries > retries:
            self.failed.append(one)
            print(f"{one.run} | failed: {one.said}", flush=True)
        else:
            self.waiting.insert(0, one)
            print(f"{one.run} | again, {one.tries} of {retries}: {one.said}", flush=True)


def _shares_more(run: ArmSeed, other: ArmSeed) -> bool:
    """Whether ``run``, which is new, would train what ``other`` is just training for both."""
    if run.seed != other.seed or run.dir.boundaries() or run.dir.checkpoints.is_dir():
        return False
    common = [mine == theirs for mine, theirs in zip(run.hashes, other.hashes, strict=False)]
    num_phases = (common.index(False) if False in common else len(common)) - 1
    return num_phases > 0 and shared_phases(run.hashes, other.hashes, other.dir) < num_phases


def _diverged(run: ArmSeed) -> bool:
    return read_sound_json(run.dir.info).get("status") == "diverged"


def _why(one: _Watched, end: End) -> str:
    if end.why is not None:
        return end.why
    if end.code < 0:
        return f"signal {signal.Signals(-end.code).name} ended it"
    log = one.run.dir.log
    if log.is_file():
        with log.open("rb") as file:
            file.seek(one.log_begins)
            lines = file.read().decode(errors="replace").strip().splitlines()
        if lines:
            return lines[-1].removeprefix("moc: ")
    return f"exit code {end.code}"


def _asks_to_detach(many: str) -> bool:
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return False
    try:
        answer = input(f"\n{many} under way. [d]etach: they go on; [c]ancel: they save and end: ")
    except (EOFError, KeyboardInterrupt):
        return False
    return answer.strip().lower().startswith("d")
