"""``moc status``: where every run of a study is, read from its folder alone, and without torch."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from rich.console import Console
from rich.live import Live
from rich.text import Text

from moc.store.files import read_sound_json, read_text
from moc.store.find import study_dir_of
from moc.store.journal import read_end
from moc.store.lock import holder_of
from moc.store.rundir import RunDir, StudyDir
from moc.text import table

REFRESH_SEC = 2.0
STATES = ("done", "running", "waiting", "paused", "pruned", "stopped", "failed")


class RunStatus(NamedTuple):
    """One run. Steps and speed are as of the last record in its journal; None: there is none."""

    arm: str
    seed: int
    state: str  # of STATES; paused: as far as asked; stopped: it has begun, nobody works on it
    phase: str | None
    step: int
    num_steps: int  # of the phase
    tokens_per_sec: float | None
    left_sec: float | None  # of training, at that speed; of a run that is under way
    host: str | None
    why: str | None  # the last line of one that failed


def study_status(folder: Path) -> list[RunStatus]:
    """Of every run that the study in ``folder`` names, by seed and arm.

    Raises:
        DamagedFile: if its study.yaml is damaged.
    """
    study = StudyDir(folder)
    text = read_text(study.config, "`moc run` with the study's own YAML makes it again")
    settings = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return [
        _status(study.run(name, seed, list(arm["phases"])), arm["phases"])
        for seed in settings["seeds"]
        for name, arm in settings["arms"].items()
    ]


def render_status(runs: Sequence[RunStatus], width: int = 100) -> str:
    """A table, what failed runs said, and how many are in which state."""
    header = ["run", "state", "phase", "step", "tokens/s", "ETA", "host"]
    rows = {f"{run.arm} seed {run.seed}": _row(run) for run in runs}
    counts = Counter(run.state for run in runs)
    lines = table(header, rows, width)
    lines += [f"{run.arm} seed {run.seed} failed: {run.why}" for run in runs if run.why]
    states = ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])
    return "\n".join([*lines, f"{len(runs)} runs: {states}"])


def watch_study(path: Path, *, again: bool) -> None:
    """Print the table of the study that ``path`` belongs to; ``again`` and again until every run is
    done or has failed: in place on a terminal, elsewhere whenever it has changed.

    Raises:
        ConfigError: if there is no such study.
    """
    folder = study_dir_of(path)
    if not again:
        print(render_status(study_status(folder)))
        return
    with StatusDisplay(folder) as display:
        while display.refresh():
            time.sleep(REFRESH_SEC)


class StatusDisplay:
    """The table, kept up to date in place on a terminal; elsewhere printed whenever it is new."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._console = Console()
        self._live = Live(console=self._console, auto_refresh=False)
        self._before = ""

    @property
    def is_live(self) -> bool:
        return self._console.is_terminal

    def __enter__(self) -> StatusDisplay:
        if self.is_live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def refresh(self) -> bool:
        """Show what is new; whether some run is neither done nor failed nor pruned."""
        runs = study_status(self.folder)
        text = render_status(runs, self._console.width if self.is_live else 100)
        if self.is_live:
            self._live.update(Text(text), refresh=True)
        elif text != self._before:
            print(text, flush=True)
        self._before = text
        return any(run.state not in ("done", "pruned", "failed") for run in runs)


def _status(run: RunDir, phases: dict[str, Any]) -> RunStatus:
    info, holder = read_sound_json(run.info), holder_of(run.path)
    if holder is not None:
        state = "running"
    else:
        begun = "stopped" if info or run.boundaries() else "waiting"
        ended = {"finished": "done", "diverged": "failed"}
        ended |= {same: same for same in ("failed", "paused", "pruned")}
        state = ended.get(info.get("status", ""), begun)
    phase, step, speed = None, 0, None
    for record in read_end(run.journal().path):
        if (name := record.get("phase")) in phases:
            phase, step = name, record["step"]
            speed = record.get("metrics", {}).get(f"{name}/train/tokens_per_sec", speed)
    left = list(_tokens_left(phases, phase, step))
    return RunStatus(
        run.arm,
        run.seed,
        state,
        phase,
        step,
        _num_steps(phases[phase]) if phase else 0,
        speed,
        sum(left) / speed if speed and state == "running" else None,
        holder.host if holder else info.get("host"),
        info.get("why") if state == "failed" else None,
    )


def _num_steps(phase: dict[str, Any]) -> int:
    return phase["tokens"] // phase["tokens_per_step"]


def _tokens_left(phases: dict[str, Any], current: str | None, step: int) -> Iterator[int]:
    """Of the phase ``current``, which is at ``step``, and of each after it."""
    names = list(phases)
    for name in names[names.index(current) if current else 0 :]:
        done = step if name == current else 0
        yield (_num_steps(phases[name]) - done) * phases[name]["tokens_per_step"]


def _row(run: RunStatus) -> list[str]:
    return [
        run.state,
        run.phase or "",
        f"{run.step}/{run.num_steps}" if run.phase else "",
        f"{run.tokens_per_sec:,.0f}" if run.tokens_per_sec else "",
        _clock(run.left_sec) if run.left_sec is not None else "",
        run.host or "",
    ]


def _clock(sec: float) -> str:
    return str(timedelta(seconds=round(sec)))
