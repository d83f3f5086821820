"""The tasks in ``evals/tasks``, built over the item files of a study."""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import datasets
import lm_eval.api.task
from lm_eval.tasks import TaskManager

from moc.errors import CheckpointError


class LocalTask(lm_eval.api.task.ConfigurableTask):
    """A task whose items are read from a JSONL file into memory.

    The stock JSON loader keeps a cache that can go stale, may ask the network, and turns a column
    of strings that look like dates into dates.
    """

    def download(self, dataset_kwargs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        path = Path((dataset_kwargs or {})["data_files"]["test"])
        if not path.is_file():
            raise CheckpointError(f"{path} is missing; `moc run` writes it when a study starts")
        lines = path.read_text(encoding="utf-8").split("\n")
        rows = [json.loads(line) for line in lines if line]
        if not rows:
            raise CheckpointError(
                f"{path} holds no items; delete it and let `moc run` write it again"
            )
        self.dataset = {"test": datasets.Dataset.from_list(rows)}


def task_names() -> list[str]:
    return _task_manager().all_subtasks


def is_choice(name: str) -> bool:
    """Whether the answers of task ``name`` are given options, scored one by one."""
    config = _task_manager().task_index[name].cfg
    assert config is not None
    return config["output_type"] == "multiple_choice"


def load_task(name: str, task_dir: Path) -> LocalTask:
    """The task ``name`` of ``task_names()`` over the items in ``task_dir``.

    Raises:
        CheckpointError: when its item file is missing or empty.
    """
    config = deepcopy(_task_manager().task_index[name].cfg)
    assert config is not None
    files = config["dataset_kwargs"]["data_files"]
    files["test"] = str(Path(task_dir) / files["test"])
    return LocalTask(config=config)


@contextmanager
def quiet() -> Iterator[None]:
    """lm-eval's warnings only: no progress bars between the lines of a training run."""
    logger, task_module = logging.getLogger("lm_eval"), lm_eval.api.task
    level, bar = logger.level, task_module.tqdm
    logger.setLevel(logging.WARNING)
    task_module.tqdm = functools.partial(bar, disable=True)  # lm-eval has no setting for it
    try:
        yield
    finally:
        logger.setLevel(level)
        task_module.tqdm = bar


@functools.cache
def _task_manager() -> TaskManager:
    return TaskManager(include_path=str(Path(__file__).parent / "tasks"), include_defaults=False)
