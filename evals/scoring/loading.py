"""A task by its name, ours, the user's or lm-eval's, ready to be run on a model."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_eval.api.metrics import mean
from lm_eval.api.model import LM
from lm_eval.evaluator import evaluate

from evals.scoring.hub import is_stock, load_stock, mirror_folder, stock_names
from evals.scoring.known_names import unknown_task
from evals.scoring.local_tasks import base_task, load_task
from evals.scoring.paired_task import options_of
from evals.scoring.records import sample, score
from evals.scoring.user_tasks import UserTasks
from moc.errors import ConfigError

_GOLDEN = 0.6180339887498949  # its multiples, modulo 1, spread most evenly


@dataclass(frozen=True)
class Loaded:
    """A task, or a group as its leaves, and which of the items are asked."""

    name: str
    leaves: Mapping[str, Any]  # lm-eval's tasks, by their own names
    chosen: Mapping[str, list[int]]  # indices of the items, by leaf, ascending
    metrics: list[str]  # those with a score for every item, the headline first
    ours: bool

    @property
    def is_choice(self) -> bool:
        """Whether answers are given options, scored one by one."""
        return all(leaf.OUTPUT_TYPE == "multiple_choice" for leaf in self.leaves.values())

    def run(self, model: LM) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """The record and the samples of all items; see ``evals.scoring.records``."""
        leaves = {name: self.leaves[name] for name in self.chosen}
        results = evaluate(
            model, {"tasks": leaves}, samples=self.chosen, bootstrap_iters=0, log_samples=True
        )
        items, samples, offered = [], [], []
        for name, leaf in leaves.items():
            logged = results["samples"][name]
            for item in logged:
                if item["filter"] != logged[0]["filter"]:  # one reading of an answer is enough
                    continue
                options: list[str] = []
                gold = None
                if self.is_choice:
                    options, gold = options_of(leaf, item["doc"], item["doc_id"])
                line = sample(item, self.metrics, options, gold, ours=self.ours)
                if len(self.leaves) > 1:
                    line["subtask"] = name
                items.append(item)
                samples.append(line)
                offered.append(options)
        record = score(samples, items, self.metrics, offered, ours=self.ours)
        shots = next(iter(leaves.values())).config.num_fewshot
        return {**record, "num_fewshot": shots or 0}, samples


def load(
    name: str,
    task_dir: Path,
    num_items: int | None,
    num_fewshot: int | None = None,
    hub_mirror: str | None = None,
    user_tasks: UserTasks | None = None,
) -> Loaded:
    """See ``evals.scoring.harness.evaluate_model``.

    Raises:
        ConfigError: for an unknown task, one without a score for every item, or missing data.
        CheckpointError: when an item file of ours is missing or empty.
    """
    ours = base_task(name) is not None
    if ours:
        leaves: dict[str, Any] = {name: load_task(name, task_dir, num_fewshot=num_fewshot)}
    elif user_tasks is not None and name in user_tasks.names:
        leaves = user_tasks.load(name, num_fewshot)
    else:
        leaves = _stock(name, mirror_folder(hub_mirror), num_fewshot)
    sizes = {leaf: len(task.eval_docs) for leaf, task in leaves.items()}
    total = sum(sizes.values())
    indices: Sequence[int] = range(total)
    if num_items is not None and num_items < total:
        indices = indices[:num_items] if ours else _spread(total, num_items)
    chosen, first = {}, 0
    for leaf, size in sizes.items():
        if within := [index - first for index in indices if first <= index < first + size]:
            chosen[leaf] = within
        first += size
    return Loaded(name, leaves, chosen, _metrics(name, leaves), ours)


@functools.lru_cache(maxsize=64)  # building MMLU's 57 subjects takes seconds, at every evaluation
def _stock(name: str, mirror: Path | None, num_fewshot: int | None) -> dict[str, Any]:
    if not is_stock(name):
        raise ConfigError(unknown_task(name, (), stock_names()))
    return load_stock(name, mirror=mirror, num_fewshot=num_fewshot)


def _spread(total: int, count: int) -> list[int]:
    """``count`` of ``total`` indices, spread evenly; those of a smaller count are among them."""
    return sorted(sorted(range(total), key=lambda index: index * _GOLDEN % 1)[:count])


def _metrics(name: str, leaves: Mapping[str, Any]) -> list[str]:
    """The metrics that are the mean of a score per item, in the task's own order.

    Raises:
        ConfigError: if there is none, or none that all leaves of a group have.
    """
    found = [
        [
            metric
            for metric, aggregate in leaf.aggregation().items()
            if aggregate is mean and leaf.higher_is_better().get(metric, True)
        ]
        for leaf in leaves.values()
    ]
    common = [metric for metric in found[0] if all(metric in others for others in found)]
    if not common or len({leaf.OUTPUT_TYPE for leaf in leaves.values()}) > 1:
        remedy = "name its tasks one by one" if len(leaves) > 1 else "leave it out"
        raise ConfigError(
            f"evals.tasks: {name!r} has no score that every item has on its own, the mean of which "
            f"is the task's; {remedy}"
        )
    return common
