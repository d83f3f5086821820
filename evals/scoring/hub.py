"""Stock lm-eval tasks and groups, over datasets of the Hugging Face hub or of a mirror of it.

A mirror is a folder ``<dataset>/<config or 'default'>/<split>.parquet``. With one, stock task
configs run without a network and without a cache.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import lm_eval.tasks
import pyarrow.parquet as pq
from lm_eval.api.group import Group
from lm_eval.api.task import ConfigurableTask, Task
from lm_eval.tasks import TaskManager
from lm_eval.tasks._factory import TaskFactory  # no public way to have tasks of another class
from lm_eval.tasks._index import Entry, Kind
from lm_eval.utils import hash_string

from evals.scoring.suites import unknown_task
from moc.errors import ConfigError

MIRROR_VARIABLE = "MOC_HUB_MIRROR"
# Where the tasks of our suites are: reading all of lm-eval's configs takes 11 s, these 0.1 s.
_FOLDERS = {
    "mmlu": "mmlu/default",
    "arc_challenge": "arc",
    "boolq": "super_glue/boolq",
    "openbookqa": "openbookqa",
}


class HubTask(ConfigurableTask):
    """A stock task as its config says, with two differences.

    Its data may come from a mirror. And an item's few-shot examples, where they are drawn, are
    drawn for that item alone, so that a subset of the items asks the same questions as all do.
    """

    def __init__(self, config: dict[str, Any], mirror: Path | None) -> None:
        self.mirror = mirror
        super().__init__(config=config)

    def download(self, dataset_kwargs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if self.mirror is not None:
            self.dataset = self._read(self.mirror)
            return
        try:
            super().download(dataset_kwargs)
        except OSError as error:
            reason = str(error).split("\n")[0]
            raise ConfigError(
                f"task {self.config.task}: {reason}; without the network, set evals.hub_mirror or "
                f"${MIRROR_VARIABLE} to a folder with {self._place('<split>')}"
            ) from error

    def fewshot_context(self, doc: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        # a doc's text, for a doc may hold what no hash takes
        self.set_fewshot_seed(int(hash_string(repr(doc))[:8], 16))
        return super().fewshot_context(doc, *args, **kwargs)

    def doc_iterator(self, *, samples: list[int] | None = None, **kwargs: Any) -> Iterator[Any]:
        if samples is None:
            return super().doc_iterator(**kwargs)
        docs = self.eval_docs
        return ((i, docs[place]) for i, place in enumerate(samples))  # the others are not read

    def _place(self, split: str) -> Path:
        return Path(str(self.DATASET_PATH), self.DATASET_NAME or "default", f"{split}.parquet")

    def _read(self, mirror: Path) -> datasets.DatasetDict:
        """The splits that exist; those that do not are taken out of the config.

        Raises:
            ConfigError: if one that is needed is among them.
        """
        config = self.config
        scored = config.test_split or config.validation_split
        shown = None
        if config.num_fewshot and self.fewshot_cfg.samples is None:
            shown = self.fewshot_cfg.split or config.training_split or config.validation_split
        splits = {}
        names = (config.training_split, config.validation_split, config.test_split)
        for split in {*names, self.fewshot_cfg.split} - {None}:
            path = mirror / self._place(str(split))
            if path.is_file():
                # the table itself: the stock loader keeps a cache and may ask the network; and a
                # name for it, or it would be hashed
                splits[split] = datasets.Dataset(
                    pq.read_table(path), fingerprint=hash_string(str(path))[:16]
                )
            elif split in (scored, shown):
                what = "few-shot examples" if split != scored else "items"
                raise ConfigError(
                    f"task {config.task}: no {path}, which the mirror needs for its {what}"
                )
        config.training_split, config.validation_split, config.test_split = (
            name if name in splits else None for name in names
        )
        if self.fewshot_cfg.split not in splits:
            self.fewshot_cfg.split = None
        return datasets.DatasetDict(splits)


class _Factory(TaskFactory):
    def __init__(self, mirror: Path | None, num_fewshot: int | None) -> None:
        super().__init__()
        self.mirror, self.num_fewshot = mirror, num_fewshot

    def _build_task(self, entry: Entry, overrides: dict[str, Any] | None) -> Task:
        if self.num_fewshot is not None:
            overrides = {**(overrides or {}), "num_fewshot": self.num_fewshot}
        if entry.kind is Kind.PY_TASK:
            if self.mirror is not None:
                raise ConfigError(
                    f"evals.tasks: {entry.name!r} loads its data by code of its own and cannot "
                    "read a mirror; leave it out"
                )
            return super()._build_task(entry, overrides)
        config = self._load_full_config(entry, overrides)
        for key in ("tag", "group", "task_list"):  # of the index, not of the task
            config.pop(key, None)
        return HubTask(config, self.mirror)


def mirror_folder(configured: str | None) -> Path | None:
    """The mirror of the config, else of the environment, else None.

    Raises:
        ConfigError: if it is no folder.
    """
    chosen = configured or os.environ.get(MIRROR_VARIABLE)
    if not chosen:
        return None
    folder = Path(chosen).expanduser()
    if not folder.is_dir():
        where = "evals.hub_mirror" if configured else f"${MIRROR_VARIABLE}"
        raise ConfigError(f"{where}: {folder} is no folder")
    return folder


def is_stock(name: str) -> bool:
    """Whether ``name`` is a task, group or tag of lm-eval."""
    return name in _FOLDERS or name in _index(None)


def stock_names() -> list[str]:
    """All tasks, groups and tags of lm-eval."""
    return list(_index(None))


def load_stock(name: str, *, mirror: Path | None, num_fewshot: int | None) -> dict[str, Task]:
    """The task ``name`` of lm-eval, or all tasks of the group ``name``; by their own names.

    Args:
        num_fewshot: examples before each question; None: as the task's config says.

    Raises:
        ConfigError: for an unknown task, or one whose data cannot be had.
    """
    index = _index(_FOLDERS.get(name))
    if name not in index:
        raise ConfigError(unknown_task(name))
    with _errors_only():
        built = _Factory(mirror, num_fewshot).build(index[name], registry=index)
    match built:
        case Group():
            tasks = built.get_all_tasks()
        case list():
            tasks = built
        case _:
            tasks = [built]
    return {task.task_name: task for task in tasks}


@functools.cache
def _index(folder: str | None) -> dict[str, Entry]:
    """What lm-eval has in a folder of its tasks, or (slowly) in all of them."""
    path = folder and str(Path(lm_eval.tasks.__file__).parent / folder)
    with _errors_only():
        return TaskManager(include_path=path, include_defaults=path is None).task_index


@contextmanager
def _errors_only() -> Iterator[None]:
    """That a stock config relies on a default, or stands there twice, is no news to our user."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
