"""Stock lm-eval tasks and groups, over datasets of the Hugging Face hub or of a mirror of it.

A mirror is a folder ``<dataset>/<config or 'default'>/<split>.parquet``. With one, stock task
configs run without a network and without a cache.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

import datasets
import lm_eval.tasks
import pyarrow.parquet as pq
from lm_eval.api.task import Task
from lm_eval.tasks import TaskManager
from lm_eval.tasks._factory import TaskFactory  # no public way to have tasks of another class
from lm_eval.tasks._index import Entry, Kind
from lm_eval.utils import hash_string

from evals.scoring.paired_task import PairedTask, leaves_of, log_level
from evals.scoring.stock_names import listed_names, write_names
from moc.errors import ConfigError

MIRROR_VARIABLE = "MOC_HUB_MIRROR"
# Where the tasks of our suites are: reading all of lm-eval's configs takes 11 s, these 0.1 s.
_FOLDERS = {
    "mmlu": "mmlu/default",
    "arc_challenge": "arc",
    "boolq": "super_glue/boolq",
    "openbookqa": "openbookqa",
}


class HubTask(PairedTask):
    """A stock task, whose data may come from a mirror."""

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
    return name in stock_names()


def stock_names() -> Collection[str]:
    """All tasks, groups and tags of lm-eval."""
    listed = listed_names()
    return all_names() if listed is None else listed


def all_names() -> list[str]:
    """The same, found (slowly) in lm-eval itself."""
    return list(_index(None))


def load_stock(name: str, *, mirror: Path | None, num_fewshot: int | None) -> dict[str, Task]:
    """The task ``name`` of lm-eval, or all tasks of the group ``name``; by their own names.

    Args:
        num_fewshot: examples before each question; None: as the task's config says.

    Raises:
        ConfigError: for a task whose data cannot be had.
    """
    index = _index(_FOLDERS.get(name))
    with log_level(logging.ERROR):  # that a stock config relies on a default is no news to a user
        return leaves_of(_Factory(mirror, num_fewshot).build(index[name], registry=index))


@functools.cache
def _index(folder: str | None) -> dict[str, Entry]:
    """What lm-eval has in a folder of its tasks, or (slowly) in all of them."""
    path = folder and str(Path(lm_eval.tasks.__file__).parent / folder)
    with log_level(logging.ERROR):  # nor that one stands there twice
        return TaskManager(include_path=path, include_defaults=path is None).task_index


if __name__ == "__main__":
    write_names(all_names())
