"""lm-eval's task, with items that are asked alike whichever others are asked, and quietly."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lm_eval.api.task
import lm_eval.utils
from jinja2.sandbox import ImmutableSandboxedEnvironment
from lm_eval.api.group import Group
from lm_eval.api.task import ConfigurableTask, Task
from lm_eval.utils import hash_string

from moc.errors import ConfigError


class PairedTask(ConfigurableTask):
    """A task as its config says; but an item's few-shot examples, where they are drawn, are drawn
    for that item alone, so that a subset of the items asks the same questions as all do.
    """

    def fewshot_context(self, doc: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        # a doc's text, for a doc may hold what no hash takes
        self.set_fewshot_seed(int(hash_string(repr(doc))[:8], 16))
        return super().fewshot_context(doc, *args, **kwargs)

    def doc_iterator(self, *, samples: list[int] | None = None, **kwargs: Any) -> Iterator[Any]:
        if samples is None:
            return super().doc_iterator(**kwargs)
        docs = self.eval_docs
        return ((i, docs[place]) for i, place in enumerate(samples))  # the others are not read


def leaves_of(built: Task | Group | list[Task]) -> dict[str, Task]:
    """The tasks of what lm-eval built, by their own names."""
    match built:
        case Group():
            tasks = built.get_all_tasks()
        case list():
            tasks = built
        case _:
            tasks = [built]
    return {task.task_name: task for task in tasks}


def options_of(task: Any, doc: dict[str, Any], number: int) -> tuple[list[str], int]:
    """The options of item ``number``, and the place of the right one (of several, the first).

    Raises:
        ConfigError: for an item without a right answer.
    """
    options = task.doc_to_choice(doc)
    gold = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
    gold = gold[0] if isinstance(gold, list) else gold
    place = options.index(gold) if gold in options else gold
    if not isinstance(place, int) or not 0 <= place < len(options):
        raise ConfigError(
            f"task {task.config.task}: item {number} has the answer {gold!r}, which is none of its "
            f"{len(options)} options; leave the task out"
        )
    return options, place


@contextmanager
def contained() -> Iterator[None]:
    """lm-eval as it is used here: warnings only, no progress bars between the lines of a training
    run, and templates of prompts that cannot reach the interpreter behind them.
    """
    task_module, utils = lm_eval.api.task, lm_eval.utils
    bar, templates = task_module.tqdm, utils.env  # lm-eval has settings for neither
    task_module.tqdm = functools.partial(bar, disable=True)
    utils.env = ImmutableSandboxedEnvironment(
        loader=templates.loader,
        undefined=templates.undefined,
        keep_trailing_newline=templates.keep_trailing_newline,
    )
    utils.env.filters |= templates.filters
    try:
        with log_level(logging.WARNING):
            yield
    finally:
        task_module.tqdm, utils.env = bar, templates


@contextmanager
def log_level(level: int) -> Iterator[None]:
    """Of lm-eval's messages those of ``level`` and above."""
    logger = logging.getLogger("lm_eval")
    before = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)
