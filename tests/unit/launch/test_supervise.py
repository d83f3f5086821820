"""What becomes of runs that a launcher has started, whatever ends them. No process here is real."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from moc.errors import RunFailed, StudyInterrupted
from moc.launch import supervise as module
from moc.launch.launcher import End
from moc.launch.supervise import supervise
from moc.launch.task import Task
from moc.run.arm_seed import ArmSeed
from moc.run.tools import Tools
from moc.store.lock import run_lock
from moc.train import signals
from moc.train.signals import handlers_kept, on_stop_signal, stop_at_once
from tests.support.helpers_training import tiny_study

Act = Callable[[], None]


class Job:
    """Ends with ``code`` at the second look."""

    where = "a fake"

    def __init__(self, code: int) -> None:
        self.code, self.looks = code, 0
        self.asked: list[str] = []

    def end(self) -> End | None:
        self.looks += 1
        return End(self.code) if self.looks > 1 else None

    def stop(self) -> None:
        self.asked.append("stop")

    def kill(self) -> None:
        self.asked.append("kill")


class Launcher:
    """
    Args:
        plan: what the tries at a run come to, by name: exit codes, or (exit code, last line).
    """

    cpus = 1
    is_here = detaches = True

    def __init__(self, at_once: int = 2, before: Act | None = None, **plan: Sequence[Any]) -> None:
        self.at_once, self.before = at_once, before
        self.plan = {name: iter(ends) for name, ends in plan.items()}
        self.submitted: list[str] = []
        self.jobs: list[Job] = []
        self.most = 0

    def submit(self, tasks: Sequence[Task]) -> Iterator[Job]:
        return map(self._start, tasks)

    def _start(self, task: Task) -> Job:
        name = f"{task.arm}{task.seed}"
        self.submitted.append(name)
        end = next(self.plan.get(name, iter([0])))
        code, line = end if isinstance(end, tuple) else (end, "")
        task.log.parent.mkdir(parents=True, exist_ok=True)
        with task.log.open("a") as log:
            log.write(f"step 1\nmoc: {line}\n" if line else "")
        self.jobs.append(Job(code))
        self.most = max(self.most, sum(job.looks < 2 for job in self.jobs))
        if self.before is not None:
            self.before()
        return self.jobs[-1]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POLL_SEC", 0.0)
    monkeypatch.setattr(module, "is_complete", lambda run, tools: False)
    monkeypatch.setitem(signals._last, "sec", -10.0)  # nobody has asked to stop just now


def runs_of(folder: Path, *overrides: str) -> list[ArmSeed]:
    study = tiny_study(folder, *overrides)
    tokenizer: Any = SimpleNamespace(fingerprint="t")
    return [ArmSeed(study, name, seed, tokenizer) for seed in study.seeds for name in study.arms]


def bring(launcher: Launcher, runs: list[ArmSeed]) -> RunFailed | None:
    tools: Any = Tools(None)  # type: ignore[arg-type]  # nothing is scored here
    return supervise(launcher, runs, runs, tools)


def test_so_many_at_once_and_an_arms_seeds_first(tmp_path: Path) -> None:
    launcher = Launcher(at_once=3)
    assert bring(launcher, runs_of(tmp_path, "seeds=[0,1]")) is None
    assert launcher.submitted == ["moc0", "moc1", "backbone0", "backbone1"]
    assert launcher.most == 3


def test_what_is_killed_or_preempted_is_started_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    launcher = Launcher(moc0=[-9, 143, (1, "the disk is full"), 0])
    assert bring(launcher, runs_of(tmp_path)) is None
    assert launcher.submitted.count("moc0") == 4 and launcher.submitted.count("backbone0") == 1
    said = capsys.readouterr().out
    assert "moc seed 0 | again, 1 of 3: signal SIGKILL ended it" in said
    assert "moc seed 0 | again, 3 of 3: the disk is full" in said


@pytest.mark.parametrize(
    ("ends", "why", "tries"),
    [
        ([-9] * 9, "signal SIGKILL ended it", 4),
        ([(2, "no such file")], "no such file", 1),
        ([(1, "not finite in step 7")] * 9, "not finite in step 7", 2),
        ([(1, f"no memory in step {i}") for i in range(9)], "no memory in step 3", 4),
        ([70], "exit code 70", 4),
    ],
    ids=["killed", "a mistake", "the same again", "another each time", "silent"],
)
def test_what_cannot_be_brought_to_its_end(
    tmp_path: Path, ends: list[Any], why: str, tries: int
) -> None:
    launcher = Launcher(moc0=ends * 4)
    runs = runs_of(tmp_path)
    failed = bring(launcher, runs)
    assert f"1 of 2 runs failed; the first: moc seed 0: {why} (all it pri" in str(failed)
    assert str(runs[0].dir.log) in str(failed)
    assert launcher.submitted.count("moc0") == tries
    assert launcher.submitted.count("backbone0") == 1  # the others are brought to their end


def test_retries_are_a_setting(tmp_path: Path) -> None:
    launcher = Launcher(moc0=[-9, 0])
    assert "SIGKILL" in str(bring(launcher, runs_of(tmp_path, "launch.retries=0")))


def test_runs_in_other_hands_are_waited_for_and_take_up_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those of a launcher that was killed live on: together they would be too many."""
    runs = runs_of(tmp_path, "seeds=[0,1]")
    with ExitStack() as held:
        held.enter_context(run_lock(runs[0].dir.path))
        launcher = Launcher(at_once=2)
        sleeps = iter(range(1000))

        def sleep(_: float) -> None:
            if next(sleeps) == 20:
                assert launcher.submitted == ["moc1", "backbone0", "backbone1"]
                assert launcher.most == 1
                held.close()

        monkeypatch.setattr(module.time, "sleep", sleep)
        assert bring(launcher, runs) is None
    assert launcher.submitted[-1] == "moc0"
    assert capsys.readouterr().out.count("moc seed 0 | waiting: held by process") == 1


def test_a_run_that_another_launcher_took_first_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = runs_of(tmp_path, "launch.retries=0")[:1]
    with ExitStack() as held:
        launcher = Launcher(
            before=lambda: (
                (len(launcher.jobs) == 1 and held.enter_context(run_lock(runs[0].dir.path)))  # type: ignore[func-returns-value]
                or None
            ),
            moc0=[(1, "is held by process 7"), 0],
        )
        sleeps = iter(range(1000))
        monkeypatch.setattr(
            module.time, "sleep", lambda _: held.close() if next(sleeps) == 9 else None
        )
        assert bring(launcher, runs) is None
    assert launcher.submitted == ["moc0", "moc0"]


def test_what_is_complete_is_not_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "is_complete", lambda run, tools: run.name == "moc")
    launcher = Launcher()
    assert bring(launcher, runs_of(tmp_path)) is None
    assert launcher.submitted == ["backbone0"]


def test_an_arm_waits_for_the_one_that_trains_the_same(tmp_path: Path) -> None:
    runs = runs_of(tmp_path, "arms.backbone.model.memory={}")
    assert runs[0].hashes == runs[1].hashes
    launcher = Launcher(at_once=2)
    assert bring(launcher, runs) is None
    assert launcher.submitted == ["moc0", "backbone0"] and launcher.most == 1


@pytest.fixture
def at_a_terminal(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was asked there; the answer is d."""
    asked: list[str] = []
    for stream in (sys.stdin, sys.stdout):
        monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda words: asked.append(words) or "d")
    return asked


def interrupted(by: int | OSError, folder: Path) -> tuple[Launcher, Any]:
    """While the second of two runs is submitted."""

    def stop() -> None:
        if len(launcher.jobs) == 2:
            if isinstance(by, OSError):
                raise by
            signal.raise_signal(by)

    launcher = Launcher(before=stop)
    with handlers_kept():
        on_stop_signal(stop_at_once)
        with pytest.raises((StudyInterrupted, OSError)) as caught:
            bring(launcher, runs_of(folder))
    return launcher, caught.value


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM, OSError()], ids=str)
def test_without_a_terminal_it_cancels_what_it_started(tmp_path: Path, by: int | OSError) -> None:
    launcher, raised = interrupted(by, tmp_path)
    assert launcher.jobs[0].asked == ["stop", "kill"]
    if not isinstance(by, OSError):
        assert launcher.jobs[1].asked == ["stop", "kill"]
        assert raised.number == by and "stopped" in str(raised)


def test_at_a_terminal_ctrl_c_asks(tmp_path: Path, at_a_terminal: list[str]) -> None:
    launcher, raised = interrupted(signal.SIGINT, tmp_path)
    assert len(at_a_terminal) == 1 and "[d]etach" in at_a_terminal[0]
    assert launcher.jobs[0].asked == [] and "detached" in str(raised)


def test_sigterm_asks_nobody(tmp_path: Path, at_a_terminal: list[str]) -> None:
    launcher, raised = interrupted(signal.SIGTERM, tmp_path)
    assert not at_a_terminal and launcher.jobs[0].asked == ["stop", "kill"]
    assert raised.number == signal.SIGTERM
