"""Ranks watch one another: none waits for ever for one that hangs or is gone.

A collective waits for whoever is missing and does not say whom. So a thread in every rank writes, a
few times per ``timeout_sec``, how many collectives this rank has begun, into a store beside the
process group's; and when its own number stands still it reads the others'. A rank is missing if its
process is gone, if it has left with an error, if nothing was heard of it for so long, or if for so
long others have waited in a collective that it has not begun.

What the main process does alone, between two trainings or in ``alone()``, takes as long as it
takes. So the process group itself waits for ``GROUP_TIMEOUT``, and here is what ends a rank: by an
error in its main thread where the connection broke, else by ``os._exit``.
"""

from __future__ import annotations

import _thread
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NoReturn

import psutil
from lightning.fabric.plugins.environments import SLURMEnvironment
from torch import distributed as dist
from torch.distributed import distributed_c10d

from moc.config.schema import TrainerConfig
from moc.errors import RankLost, StudyInterrupted, Terminated
from moc.plan.arms import world_size
from moc.store.lock import lives, release_all, start_of
from moc.train.distributed import is_alone, launched_rank

GROUP_TIMEOUT = timedelta(days=2)
_MAX_BEAT_SEC = 1.0
_LAST_WORDS_SEC = 4.0  # for a main thread, and for other processes, to end by themselves
_CONNECT_SEC = 10.0  # for a rank that came before the one that keeps the store
_UNWIND_SEC = 120.0  # for all that follows an error, MLflow's last pass included
_AGAIN = "the same command goes on from the last checkpoint"

_watch: _Watch | None = None  # a process is one rank, as it is of torch.distributed


@contextmanager
def watching(config: TrainerConfig) -> Iterator[None]:
    """All that ranks do, trainings or not: who leaves by an exception tells the others why."""
    start_watch(config)
    try:
        yield
    except BaseException as error:
        if _watch is not None:
            _watch.goodbye(*_last_words(error))
        raise


@contextmanager
def training(config: TrainerConfig) -> Iterator[None]:
    """Ranks wait for one another in here.

    Raises:
        RankLost, StudyInterrupted: in place of the error that a broken connection gave, if another
            rank has failed, or was asked to stop.
    """
    start_watch(config)
    if _watch is not None:
        _watch.enter()
    try:
        yield
    except BaseException as error:
        if _watch is not None and (lost := _watch.who_is_lost(error)) is not None:
            raise lost from error
        raise
    finally:
        if _watch is not None:
            _watch.leave()


def start_watch(config: TrainerConfig, *, in_training: bool = False) -> None:
    """Begin to watch, if a launcher has started several ranks and this one does not watch yet."""
    global _watch
    if _watch is not None or (num_ranks := world_size(config)) == 1:
        return
    if {"MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys() or SLURMEnvironment.detect():
        _watch = _Watch(config.timeout_sec, launched_rank(config.devices or 1), num_ranks)
        if in_training:
            _watch.enter()
        _watch.start()


def _last_words(error: BaseException) -> tuple[str, int]:
    if isinstance(error, KeyboardInterrupt):
        return "was stopped", 143 if isinstance(error, Terminated) else 130
    if isinstance(error, StudyInterrupted):
        return str(error), 128 + error.number
    return (str(error).splitlines() or [type(error).__name__])[0], 1


class _Watch(threading.Thread):
    def __init__(self, timeout_sec: float, rank: int, num_ranks: int) -> None:
        super().__init__(name="ranks", daemon=True)
        self.timeout_sec, self.rank, self.num_ranks = timeout_sec, rank, num_ranks
        self.beat_sec = min(_MAX_BEAT_SEC, timeout_sec / 4)
        host, pid = socket.gethostname(), os.getpid()
        self._me: dict[str, Any] = {"host": host, "pid": pid, "started": start_of(pid)}
        self._trainings, self._waiting, self._last_words = 0, False, dict[str, Any]()
        self._alarmed = False  # a connection broke: silence means more
        self._lost: RankLost | StudyInterrupted | None = None
        self._connected, self._found = threading.Event(), threading.Event()
        self._unwinding = threading.Event()
        self._one_of_us = threading.Lock()
        self._store: dist.Store | None = None
        self._beats = 0
        self._still_sec = 0.0  # for so long this rank has begun nothing
        self._before: tuple[int, int] | None = None
        self._heard: dict[int, tuple[int, float]] = {}  # beats, and how long it stays at them

    def enter(self) -> None:
        self._trainings += 1
        self._waiting = True

    def leave(self) -> None:
        self._waiting = False
        self._tell()  # whoever ends right after a training is not lost to it

    def who_is_lost(self, error: BaseException) -> RankLost | StudyInterrupted | None:
        """The error to raise in place of ``error``, if another rank is behind it."""
        with self._one_of_us:  # it is too late once the thread has begun to end this process
            self._unwinding.set()
        if self._lost is None and _connection_broke(error):
            self._alarmed = True
            self._found.wait(6 * self.beat_sec)
            if self._lost is None:
                reason = str(error).splitlines()[0]
                return RankLost(f"the connection between ranks broke ({reason}); {_AGAIN}")
        return self._lost

    def goodbye(self, line: str, exit_code: int) -> None:
        if threading.current_thread() is not self:
            self._connected.wait(_CONNECT_SEC)  # whoever leaves earlier would leave without a word
        self._last_words = {"line": line, "exit_code": exit_code}
        self._tell()

    def _tell(self) -> None:
        if self._store is not None:
            try:
                self._write(self._store)
            except dist.DistError:
                return  # whoever kept the store is gone, and so is whoever would read it

    def run(self) -> None:
        try:
            self._store = _connect(self.rank, self.timeout_sec)
            self._connected.set()
            while self._lost is None:
                self._write(self._store)
                time.sleep(self.beat_sec)
                self._lost = self._look(self._store)
        except (dist.DistError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            keeper = "the launcher" if _launcher_keeps_it() else "rank 0"
            self._lost = RankLost(f"{keeper} is gone or cannot be reached ({reason}); {_AGAIN}")
        self._found.set()
        if self._waiting and not self._unwinding.wait(_LAST_WORDS_SEC / 2):
            _thread.interrupt_main(signal.SIGTERM)  # it may be scoring; in a collective it is deaf
            self._unwinding.wait(_LAST_WORDS_SEC / 2)
        while not self._unwinding.is_set():
            with self._one_of_us:
                if self._waiting and not self._unwinding.is_set():
                    self._end_now()
            time.sleep(self.beat_sec)  # not in a training: this rank may have come to its end
        time.sleep(_UNWIND_SEC)
        self._end_now()

    def _write(self, store: dist.Store) -> None:
        self._beats += 1
        state = {
            **self._me,
            "beats": self._beats,
            "place": self._place(),
            "training": self._waiting,
            "waiting": self._waiting and not is_alone(),
            **self._last_words,
        }
        store.set(str(self.rank), json.dumps(state))

    def _place(self) -> tuple[int, int]:
        """How many trainings, and how many collectives in all groups, this rank has begun."""
        groups: list[Any] = list(distributed_c10d._world.pg_map) if dist.is_initialized() else []
        return self._trainings, sum(group._get_sequence_number_for_group() for group in groups)

    def _look(self, store: dist.Store) -> RankLost | StudyInterrupted | None:
        """Who is missing, once this rank has stood still for a while. Time is counted in beats: a
        computer that was suspended, and its ranks with it, accuses nobody."""
        place = self._place()
        if not self._waiting or place != self._before:
            self._before, self._still_sec = place, 0.0
            self._heard = {}
            if not self._alarmed:
                return None
        self._still_sec += self.beat_sec
        for other in range(self.num_ranks):
            if other != self.rank:
                lost = self._judge(other, _read(store, other), place)
                if lost is not None:
                    return lost
        return None

    def _judge(
        self, other: int, state: dict[str, Any] | None, place: tuple[int, int]
    ) -> RankLost | StudyInterrupted | None:
        limit = f"trainer.timeout_sec {self.timeout_sec:g}"
        if state is None:
            late = self._still_sec >= self.timeout_sec
            return self._missing(f"rank {other}", f"never came ({limit})") if late else None
        if "line" in state:
            return self._adopt(other, state)
        who = f"rank {other} (process {state['pid']} on {state['host']})"
        came_to_its_end = not state["training"] and state["place"][0] == place[0]
        due = not came_to_its_end or self._alarmed or self._still_sec >= self.timeout_sec
        here = state["host"] == self._me["host"]
        if due and here and not lives(state["pid"], state["started"]):
            return self._missing(who, "is gone: its process was killed, or crashed")
        beats, silent_sec = self._heard.get(other, (state["beats"], 0.0))
        silent_sec = silent_sec + self.beat_sec if beats == state["beats"] else 0.0
        self._heard[other] = state["beats"], silent_sec
        patience = min(self.timeout_sec, 3 * self.beat_sec) if self._alarmed else self.timeout_sec
        if silent_sec >= patience:
            _kill(state, self._me["host"])  # stopped, so it cannot end by itself
            return self._missing(who, f"gave no sign of life for {patience:.0f} s ({limit})")
        behind = state["waiting"] and tuple(state["place"]) < place
        if behind and self._still_sec >= self.timeout_sec:
            return self._missing(who, f"kept the others waiting ({limit})")
        return None

    def _missing(self, who: str, what: str) -> RankLost:
        lost = RankLost(f"{who} {what}; {_AGAIN}")
        self.goodbye(str(lost), 1)
        return lost

    def _adopt(self, other: int, state: dict[str, Any]) -> RankLost | StudyInterrupted:
        """What ended another rank ends this one, by the same words."""
        line, exit_code = state["line"], state["exit_code"]
        if exit_code > 128:
            return StudyInterrupted(f"rank {other} {line}", exit_code - 128)
        own = line.startswith(("rank", "the connection"))  # it was another one's fault already
        return RankLost(line if own else f"rank {other} ended: {line}")

    def _end_now(self) -> NoReturn:
        """The main thread is in a collective that nothing ends. On disk everything is whole."""
        assert self._lost is not None
        number = self._lost.number + 128 if isinstance(self._lost, StudyInterrupted) else 1
        self.goodbye(str(self._lost), number)
        print(f"moc: {self._lost}", file=sys.stderr, flush=True)
        children = psutil.Process().children(recursive=True)
        _, alive = psutil.wait_procs(children, timeout=_LAST_WORDS_SEC)
        for child in alive:
            child.kill()
        release_all()
        os._exit(number)


def _connect(rank: int, timeout_sec: float) -> dist.Store:
    """The store that the process group meets at; rank 0 opens it where no launcher has."""
    host, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
    if host is None or port is None:
        slurm = SLURMEnvironment()
        host, port = slurm.main_address, str(slurm.main_port)
    store = dist.TCPStore(
        host,
        int(port),
        is_master=rank == 0 and not _launcher_keeps_it(),
        timeout=timedelta(seconds=timeout_sec),
        wait_for_workers=False,
        multi_tenant=True,  # torch.distributed opens the same one again
    )
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return dist.PrefixStore(f"moc/ranks/{attempt}", store)


def _launcher_keeps_it() -> bool:
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def _read(store: dist.Store, other: int) -> dict[str, Any] | None:
    return json.loads(store.get(str(other))) if store.check([str(other)]) else None


def _kill(state: dict[str, Any], host: str) -> None:
    if state["host"] == host and lives(state["pid"], state["started"]):
        psutil.Process(state["pid"]).kill()


def _connection_broke(error: BaseException) -> bool:
    return isinstance(error, dist.DistError) or "gloo" in str(error)
