"""A user's own tasks: lm-eval YAMLs in the folders of ``evals.task_paths``.

They run without a network, on local data, and no code that they name is run unless
``evals.allow_task_code`` says so.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lm_eval.api.registry import metric_registry
from lm_eval.api.task import Task
from lm_eval.tasks._factory import TaskFactory  # no public way to have tasks of another class
from lm_eval.tasks._index import Entry, Kind

from evals.scoring.known_names import check_folders
from evals.scoring.local_tasks import base_task
from evals.scoring.paired_task import PairedTask, contained, leaves_of, log_level, options_of
from evals.scoring.suites import SUITES
from evals.scoring.task_data import data_files, read_data
from evals.scoring.task_yaml import one_line, read_task_yaml, resolved
from moc.errors import ConfigError, nearest
from moc.store.rundir import ON_ANSWER

# Each has lm-eval run code, or load data, that is neither in the YAML nor named by a !function.
_NOT_READ = ("class", "custom_dataset", "use_prompt", "unsafe_code")


class UserTask(PairedTask):
    """A task over local files."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.files = data_files(config)
        super().__init__(config=config)

    def download(self, dataset_kwargs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        self.dataset = read_data(self.files, self.DATASET_PATH)


class UserTasks:
    """The tasks, groups and tags of some folders, by name.

    Raises:
        ConfigError: for a folder that is missing, a YAML that cannot be read, or a name that is
            taken or cannot name a file.
    """

    def __init__(self, folders: Sequence[str | Path] = (), *, allow_code: bool = False) -> None:
        self.allow_code = allow_code
        self._index: dict[str, Entry] = {}
        self._files: dict[str, list[Path]] = {}  # that a task or group was read from
        self._loaded: dict[tuple[str, int | None], dict[str, Task]] = {}
        check_folders(folders)
        for folder in map(Path, folders):
            for path in _yaml_files(folder):
                self._add(path)

    @property
    def names(self) -> set[str]:
        return set(self._index)

    def file_of(self, name: str) -> Path:
        """The YAML of a task or group; of a tag, that of a task with it."""
        entry = self._index[name]
        return entry.yaml_path or self.file_of(min(entry.tags))

    def load(self, name: str, num_fewshot: int | None = None) -> dict[str, Task]:
        """The task ``name``, or all tasks of the group or tag ``name``; by their own names.

        Args:
            num_fewshot: examples before each question; None: as the task's config says.

        Raises:
            ConfigError: for code that is not allowed, data that cannot be had, or a config or an
                item that lm-eval cannot use.
        """
        if (name, num_fewshot) not in self._loaded:
            list(self._members(name))  # all are there
            try:
                with contained(), log_level(logging.ERROR):
                    factory = _Factory(self.allow_code, num_fewshot)
                    tasks = leaves_of(factory.build(self._index[name], registry=self._index))
            except ConfigError:
                raise
            except Exception as error:  # lm-eval checks little, and says it in any way
                where = f"{self.file_of(name)}: task {name}"
                raise ConfigError(f"{where}: {one_line(error)}") from error
            self._loaded[name, num_fewshot] = tasks
        return self._loaded[name, num_fewshot]

    def fingerprint(self, names: Sequence[str]) -> str:
        """Changes with the content of the files that those of ``names`` are made from that are
        among these tasks; empty if none is.

        Raises:
            ConfigError: if one cannot be loaded.
        """
        files: set[Path] = set()
        for name in self.names.intersection(names):
            for member in self._members(name):
                files.update(self._files.get(member, ()))
            for task in self.load(name).values():
                files.update(path for paths in task.files.values() for path in paths)
        if self.allow_code:
            files.update(code for file in list(files) for code in file.parent.glob("*.py"))
        contents = sorted(hashlib.sha256(file.read_bytes()).hexdigest() for file in files)
        return hashlib.sha256("".join(contents).encode()).hexdigest()[:12] if files else ""

    def _add(self, path: Path) -> None:
        config, files = read_task_yaml(path)
        task = config.get("task")
        if "group" in config:
            if not isinstance(task, list):
                raise ConfigError(
                    f"{path}: a group lists its tasks under 'task'; a task has a 'tag'"
                )
            name, kind = str(config["group"]), Kind.GROUP
        elif isinstance(task, str):
            name, kind = task, Kind.TASK
        else:  # there for others to include
            return
        self._take(name, path)
        self._index[name] = Entry(name, kind, path, config)
        self._files[name] = files
        tags = config.get("tag") or []
        for tag in tags if isinstance(tags, list) else [tags]:
            if tag not in self._index or self._index[tag].kind is not Kind.TAG:
                self._take(str(tag), path)
                self._index[tag] = Entry(str(tag), Kind.TAG, None)
            self._index[tag].tags.add(name)

    def _take(self, name: str, path: Path) -> None:
        """
        Raises:
            ConfigError: if a task of ``path`` cannot have this name.
        """
        if not re.fullmatch(r"\w[\w.-]*", name) or name.endswith(ON_ANSWER) or name == "study":
            raise ConfigError(
                f"{path}: {name!r} cannot name a task here; use letters, digits, '_', '-', '.', "
                f"but neither 'study' nor an end in '{ON_ANSWER}'"
            )
        if name in SUITES or base_task(name) is not None:
            raise ConfigError(f"{path}: {name!r} is a task or suite of ours; give it another name")
        if name in self._index:
            raise ConfigError(
                f"{path}: {name!r} is also in {self.file_of(name)}; give one of them another name"
            )

    def _members(self, name: str, above: tuple[str, ...] = ()) -> Iterator[str]:
        """``name``, and the names of all tasks and groups that a group or tag consists of."""
        if name in above:
            raise ConfigError(f"{self.file_of(name)}: group {name!r} contains itself")
        yield name
        entry = self._index[name]
        is_group = entry.kind is Kind.GROUP
        for member in _listed(entry.cfg or {}) if is_group else sorted(entry.tags):
            if member not in self._index:
                raise ConfigError(
                    f"{self.file_of(name)}: group {name!r}: no task {member!r} in evals.task_paths;"
                    f" {nearest(member, sorted(self._index))}"
                )
            yield from self._members(member, (*above, name))


class _Factory(TaskFactory):
    def __init__(self, allow_code: bool, num_fewshot: int | None) -> None:
        super().__init__()
        self.allow_code, self.num_fewshot = allow_code, num_fewshot

    def _load_full_config(
        self, entry: Entry, overrides: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        config = {**(entry.cfg or {}), **(overrides or {})}
        for key in _NOT_READ:
            if config.get(key):
                raise ConfigError(f"{entry.yaml_path}: {key} is not read here; leave it out")
        return resolved(config, allow_code=self.allow_code)

    def _build_task(self, entry: Entry, overrides: dict[str, Any] | None) -> Task:
        if self.num_fewshot is not None:
            overrides = {**(overrides or {}), "num_fewshot": self.num_fewshot}
        config = self._load_full_config(entry, overrides)
        for key in ("tag", "group", "task_list"):  # of the index, not of the task
            config.pop(key, None)
        try:
            _check_metrics(config)
            task = UserTask(config)
            _render_all(task)
        except ConfigError as error:
            raise ConfigError(f"{entry.yaml_path}: {error}") from error
        return task


def _yaml_files(folder: Path) -> list[Path]:
    found = [path for suffix in ("yaml", "yml") for path in folder.rglob(f"*.{suffix}")]
    return sorted(
        path
        for path in found
        if not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


def _listed(group: Mapping[str, Any]) -> Iterator[str]:
    """The names of a group's members; a group that it defines in place stands for its own."""
    for member in group["task"]:
        if isinstance(member, dict) and isinstance(member.get("task"), list):
            yield from _listed(member)
        else:
            named = isinstance(member, dict)
            yield str(member.get("group") or member.get("task") if named else member)


def _check_metrics(config: Mapping[str, Any]) -> None:
    """lm-eval would search the hub for a metric that it does not know, and run what it finds."""
    for metric in config.get("metric_list") or ():
        name = metric.get("metric")
        known = callable(name) or name in metric_registry or config.get("process_results")
        if metric.get("hf_evaluate") or not known:
            raise ConfigError(f"metric {name!r} is none of lm-eval's own; take one of those")


def _render_all(task: Any) -> None:
    """Every prompt and answer once: a mistake in one of them is told before anything is trained."""
    for number, doc in enumerate(task.eval_docs):
        if task.OUTPUT_TYPE == "multiple_choice":
            options_of(task, doc, number)
        task.doc_to_text(doc), task.doc_to_target(doc)
