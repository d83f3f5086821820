"""Where a study and its runs keep what. The files are the truth; MLflow and the report are made
from them.

    <runs_dir>/<study>/
      study.yaml, tuning.yaml, plan.json, datasets.json, environment.json, tokenizer/, tasks/,
      report/
      slurm/                                 what submitit keeps of its jobs
      arms/<arm>/seed-<n>/                   a run
        run.json, lock.json, metrics.jsonl, memory_use.jsonl, revivals.jsonl, shared.json,
        log.txt                              what it printed, where a launcher started it
        checkpoints/<phase>-<step>/          inside a phase; gone when it has ended
        pauses/<phase>-<step>.json           scores where it was told to stop and go on later
        boundaries/<i>-<phase>/              model.safetensors, model.json, manifest.json,
                                             evals.json, samples/
        probes/<probe>/<i>-<phase>/          probe.json
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from moc.errors import DamagedFile
from moc.store.files import read_json, sync_path
from moc.store.journal import Journal
from moc.store.manifest import check_format

START = "start"  # the boundary before the first phase

# Ends of names in a boundary's evals.json.
ON_ANSWER = ".full"  # of a task: its answers were routed on as well
KNOWLEDGE = "knowledge."  # and a source: what is known of each of its people or records
TRAINED = "-trained"  # of a source: its training text, not its validation text

# In a study's folder report/: what the report says in short, for whoever shows a list of studies.
SUMMARY_TEXT = "summary.md"
SUMMARY_VALUES = "summary.json"  # {metric: value}


_NAME = re.compile(r"(\d+-.+|seed-\d+)(?<!\.partial)")  # of a boundary's or a run's folder
_MODEL_FILES = ("model.safetensors", "model.json", "manifest.json")


@dataclass(frozen=True)
class Boundary:
    """The model at one boundary: ``boundaries/<index>-<name>`` of a run."""

    path: Path

    @property
    def index(self) -> int:
        return int(self.path.name.partition("-")[0])

    @property
    def name(self) -> str:
        """``start`` before the first phase, else the name of the phase that ended."""
        return self.path.name.partition("-")[2]

    @property
    def run(self) -> RunDir:
        return RunDir(self.path.resolve().parents[1])

    @property
    def weights(self) -> Path:
        return self.path / "model.safetensors"

    @property
    def evals(self) -> Path:
        return self.path / "evals.json"

    @property
    def samples(self) -> Path:
        return self.path / "samples"


@dataclass(frozen=True)
class RunDir:
    """One arm and seed of a study.

    Args:
        phases: their names in order; not needed to read what is there.
    """

    path: Path
    phases: Sequence[str] = ()

    @property
    def arm(self) -> str:
        return self.path.parent.name

    @property
    def seed(self) -> int:
        return int(self.path.name.removeprefix("seed-"))

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def info(self) -> Path:
        return self.path / "run.json"

    @property
    def log(self) -> Path:
        return self.path / "log.txt"

    @property
    def shared(self) -> Path:
        return self.path / "shared.json"

    def boundary_name(self, index: int) -> str:
        return self.phases[index - 1] if index else START

    def boundary(self, index: int) -> Path:
        return self.path / "boundaries" / f"{index}-{self.boundary_name(index)}"

    def pause(self, phase_index: int, step: int) -> Path:
        return self.path / "pauses" / f"{self.phases[phase_index]}-{step:08d}.json"

    def boundaries(self) -> list[Boundary]:
        """Those whose weights should be there, in order: of a damaged one, whoever reads it says
        what is missing."""
        files = [file for name in _MODEL_FILES for file in self.path.glob(f"boundaries/*/{name}")]
        found = {Boundary(file.parent) for file in files if _is_named(file.parent)}
        return sorted(found, key=lambda boundary: boundary.index)

    def probe(self, name: str, boundary: Path) -> Path:
        return self.path / "probes" / name / boundary.name

    def probes(self) -> list[Path]:
        """The folders of finished probes."""
        return sorted(file.parent for file in self.path.glob("probes/*/*/probe.json"))

    def journal(self) -> Journal:
        return Journal(self.path / "metrics.jsonl")

    def memory_use(self) -> Journal:
        return Journal(self.path / "memory_use.jsonl")

    def revivals(self) -> Journal:
        return Journal(self.path / "revivals.jsonl")

    def sync_journals(self) -> None:
        """Wait until they are on disk: before a checkpoint or boundary that goes on from them."""
        for journal in (self.journal(), self.memory_use(), self.revivals()):
            if journal.path.is_file():
                sync_path(journal.path)


@dataclass(frozen=True)
class StudyDir:
    path: Path

    @property
    def config(self) -> Path:
        return self.path / "study.yaml"

    @property
    def plan(self) -> Path:
        return self.path / "plan.json"

    @property
    def datasets(self) -> Path:
        return self.path / "datasets.json"

    @property
    def environment(self) -> Path:
        return self.path / "environment.json"

    @property
    def tuning(self) -> Path:
        """How the arms were tuned, if they were: what ``moc tune`` wrote for them."""
        return self.path / "tuning.yaml"

    @property
    def tokenizer(self) -> Path:
        return self.path / "tokenizer"

    @property
    def tasks(self) -> Path:
        return self.path / "tasks"

    @property
    def report(self) -> Path:
        return self.path / "report"

    @property
    def slurm(self) -> Path:
        return self.path / "slurm"

    def lock(self) -> FileLock:
        """Held for seconds, by whoever makes the study's own files."""
        self.path.mkdir(parents=True, exist_ok=True)
        return FileLock(self.path / ".lock")

    def run(self, arm: str, seed: int, phases: Sequence[str] = ()) -> RunDir:
        return RunDir(self.path / "arms" / arm / f"seed-{seed}", tuple(phases))

    def runs(self) -> list[RunDir]:
        """Those that have begun."""
        found = {
            path.parent
            for name in ("run.json", "boundaries", "checkpoints")
            for path in self.path.glob(f"arms/*/seed-*/{name}")
        }
        return [RunDir(folder) for folder in sorted(found) if _is_named(folder)]

    def check_format(self) -> None:
        """
        Raises:
            FormatError: if a run was written in another format.
        """
        for run in self.runs():
            try:
                if run.info.is_file():
                    check_format(read_json(run.info), run.path)
            except DamagedFile:
                continue  # the manifests say it, too


def _is_named(folder: Path) -> bool:
    """Not a leftover of a killed write, nor what somebody has put there."""
    return _NAME.fullmatch(folder.name) is not None
