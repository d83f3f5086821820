"""Whether anybody knows a task, without lm-eval: a typo is answered at once."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Sequence
from pathlib import Path

from evals.scoring.stock_names import listed_names
from evals.scoring.suites import SUITES
from moc.config.schema import StudyConfig
from moc.errors import ConfigError, nearest

_NAMED = re.compile(r"^(?:task|group|tag):\s*(.+(?:\n\s*-.+)*)", re.MULTILINE)  # in a task's YAML


def check_task_names(study: StudyConfig) -> None:
    """What passes is looked at again by ``expand_tasks``, which knows more.

    Raises:
        ConfigError: if ``evals.tasks`` has a name that is neither a suite, nor a task of ours, of
            the user or of lm-eval, or ``evals.task_paths`` a folder that is not there.
    """
    check_folders(study.evals.task_paths)
    listed = listed_names()
    if listed is None:
        return
    ours, own = our_names(), _names_in(study.evals.task_paths)
    for name in study.evals.tasks:
        if name not in SUITES and name.partition(".")[0] not in ours and name not in own | listed:
            raise ConfigError(unknown_task(name, sorted(own), listed))


def check_folders(folders: Sequence[str | Path]) -> None:
    for folder in folders:
        if not Path(folder).is_dir():
            raise ConfigError(f"evals.task_paths: {folder} is no folder")


def unknown_task(name: str, own: Sequence[str], stock: Collection[str]) -> str:
    """What to say of a task that nobody knows; names of lm-eval only if one is near."""
    known = [*SUITES, *our_names(), *own]
    everything = [*known, *sorted(stock)]
    near = difflib.get_close_matches(name[:100], everything, n=1, cutoff=0.5)
    hint = nearest(name[:100], everything if near else known)
    return (
        f"evals.tasks: no task {name[:100]!r}; {hint}{'' if near else ', or any task of lm-eval'}"
    )


def our_names() -> list[str]:
    return sorted(path.stem for path in (Path(__file__).parents[1] / "tasks").glob("*.yaml"))


def _names_in(folders: Sequence[str]) -> set[str]:
    """At least the names that the YAMLs in ``folders`` give."""
    files = [path for folder in folders for path in Path(folder).rglob("*.y*ml") if path.is_file()]
    texts = (path.read_text(encoding="utf-8", errors="replace") for path in files)
    return {
        word
        for text in texts
        for found in _NAMED.findall(text)
        for word in re.findall(r"[\w.-]+", found)
    }
