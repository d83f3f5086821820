"""The tasks in ``evals/tasks``, built over the item files of a study."""

from __future__ import annotations

import functools
import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import datasets
import lm_eval.api.task
from lm_eval.tasks import TaskManager

from moc.errors import CheckpointError, ConfigError


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


def base_task(name: str) -> str | None:
    """Which of ``task_names()`` task ``name`` is: itself, or ``<base>.<source>``; None: neither."""
    base = name.partition(".")[0]
    return base if base in task_names() else None


def load_task(name: str, task_dir: Path, *, num_fewshot: int | None = None) -> LocalTask:
    """Our task ``name`` over its items, ``task_dir/<name>.jsonl``.

    Raises:
        CheckpointError: when its item file is missing or empty.
        ConfigError: for few-shot examples, of which our tasks have none to show.
    """
    if num_fewshot:
        raise ConfigError(f"evals.num_fewshot: {name} has no examples to show; leave it out")
    config = deepcopy(_task_manager().task_index[base_task(name)].cfg)
    assert config is not None
    config["task"] = name
    config["dataset_kwargs"]["data_files"]["test"] = str(Path(task_dir) / f"{name}.jsonl")
    return LocalTask(config=config)


@functools.cache
def _task_manager() -> TaskManager:
    return TaskManager(
        include_path=str(Path(__file__).parents[1] / "tasks"), include_defaults=False
    )
