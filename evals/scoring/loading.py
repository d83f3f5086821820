"""A task by its name, ours or lm-eval's, ready to be run on a model."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lm_eval.api.task
from lm_eval.api.metrics import mean
from lm_eval.api.model import LM
from lm_eval.evaluator import evaluate

from evals.scoring.hub import load_stock, mirror_folder
from evals.scoring.local_tasks import base_task, load_task
from evals.scoring.records import sample, score
from moc.errors import ConfigError

_GOLDEN = 0.6180339887498949  # its multiples, modulo 1, spread most evenly


@dataclass(frozen=True)
class Loaded:
    """A task, or a group as its leaves, and which of the items are asked."""

    name: str
    leaves: Mapping[str, Any]  # lm-eval's tasks, by their own names
    chosen: Mapping[str, list[int]]  # places of the items, by leaf, ascending
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
                options, gold = _options(leaf, item) if self.is_choice else ([], None)
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
) -> Loaded:
    """See ``evals.scoring.harness.evaluate_model``.

    Raises:
        ConfigError: for an unknown task, one without a score for every item, or missing data.
        CheckpointError: when an item file of ours is missing or empty.
    """
    ours = base_task(name) is not None
    if ours:
        leaves: dict[str, Any] = {name: load_task(name, task_dir, num_fewshot=num_fewshot)}
    else:
        leaves = _stock(name, mirror_folder(hub_mirror), num_fewshot)
    sizes = {leaf: len(task.eval_docs) for leaf, task in leaves.items()}
    total = sum(sizes.values())
    places: Sequence[int] = range(total)
    if num_items is not None and num_items < total:
        places = places[:num_items] if ours else _spread(total, num_items)
    chosen, first = {}, 0
    for leaf, size in sizes.items():
        if within := [place - first for place in places if first <= place < first + size]:
            chosen[leaf] = within
        first += size
    return Loaded(name, leaves, chosen, _metrics(name, leaves), ours)


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


@functools.lru_cache(maxsize=64)  # building MMLU's 57 subjects takes seconds, at every evaluation
def _stock(name: str, mirror: Path | None, num_fewshot: int | None) -> dict[str, Any]:
    return load_stock(name, mirror=mirror, num_fewshot=num_fewshot)


def _spread(total: int, count: int) -> list[int]:
    """``count`` of ``total`` places, spread evenly; those of a smaller count are among them."""
    return sorted(sorted(range(total), key=lambda place: place * _GOLDEN % 1)[:count])


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


def _options(leaf: Any, item: dict[str, Any]) -> tuple[list[str], int]:
    """The options of an item, and the place of the right one (of several, the first).

    Raises:
        ConfigError: for an item without a right answer.
    """
    options = leaf.doc_to_choice(item["doc"])
    gold = leaf.doc_to_text(item["doc"]) if leaf.multiple_input else item["target"]
    gold = gold[0] if isinstance(gold, list) else gold
    place = options.index(gold) if gold in options else gold
    if not isinstance(place, int) or not 0 <= place < len(options):
        raise ConfigError(
            f"task {leaf.config.task}: item {item['doc_id']} has the answer {gold!r}, which is "
            f"none of its {len(options)} options; leave the task out"
        )
    return options, place
