"""Scores of a model in memory: lm-eval tasks over local files, and bits per byte.

An evaluation is a pure observation. It depends on the weights, the items and ``context_length``
alone: not on batch size, padding, autocast or the training phase; and it leaves every random
number generator and the model's train/eval modes as they were.

B batch, L length, N windows or scored tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from lm_eval.evaluator import evaluate
from torch import Tensor, nn
from torch.nn import functional as F

from evals.local_tasks import is_choice, load_task, quiet, task_names
from evals.observing import device_of, looks_ahead, only_observing
from evals.study_lm import RouteOn, StudyLM
from evals.windows import real_lengths
from moc.config import nearest
from moc.errors import ConfigError
from moc.rundir import ON_ANSWER

if TYPE_CHECKING:
    from moc.data.tokenizer import Tokenizer
    from moc.model import Transformer

Scores = dict[str, dict[str, Any]]  # by task
Samples = dict[str, list[dict[str, Any]]]  # by task


def evaluate_model(
    model: Transformer,
    tokenizer: Tokenizer,
    *,
    tasks: Sequence[str],
    task_dir: Path,
    context_length: int,
    batch_size: int,
    num_items: int,
    route_on: Literal["context", "full", "both"] = "context",
) -> tuple[Scores, Samples]:
    """Run ``tasks`` on the first ``num_items`` items of ``task_dir/<task>.jsonl``.

    Under data parallelism every rank calls this with the same arguments and gets the same result.

    Args:
        route_on: see ``StudyLM``. ``both``: on the context, and multiple-choice tasks, if the model
            looks ahead, once more on the answer as ``<task>.full``.

    Returns:
        Scores, ``{task: {"metric", "value", "stderr", "num_items", "chance", "majority",
        "extra"}}``, and samples, ``{task: [{"doc_hash", "doc_id", "correct", "prediction",
        "target"}]}``. ``doc_hash`` names an item across boundaries, arms and seeds.

    Raises:
        ConfigError: for an unknown task, or no items asked for.
        CheckpointError: when an item file is missing or empty.
    """
    known = task_names()
    for name in tasks:
        if name not in known:
            raise ConfigError(f"evals.tasks: no task {name!r}; {nearest(name, known)}")
    if num_items < 1:
        raise ConfigError(f"evals.num_items must be at least 1, not {num_items}")
    passes: dict[str, RouteOn] = {"": "context" if route_on == "both" else route_on}
    if route_on == "both" and looks_ahead(model):
        passes[ON_ANSWER] = "full"
    scores: Scores = {}
    samples: Samples = {}
    if not tasks:
        return scores, samples
    for ending, routed_on in passes.items():
        study_lm = StudyLM(
            model,
            tokenizer,
            context_length=context_length,
            batch_size=batch_size,
            route_on=routed_on,
        )
        # an answer that has yet to be written cannot steer
        names = [name for name in tasks if not ending or is_choice(name)]
        if not names:
            continue
        with only_observing(model), quiet():
            loaded = {name: load_task(name, task_dir) for name in names}
            results = evaluate(
                study_lm, {"tasks": loaded}, limit=num_items, bootstrap_iters=0, log_samples=True
            )
        for name, task in loaded.items():
            metrics = [metric["metric"] for metric in task.config.metric_list]
            logged = results["samples"][name]
            scores[name + ending] = _score(logged, metrics)
            samples[name + ending] = [_sample(item, metrics[0]) for item in logged]
    return scores, samples


def bits_per_byte(
    model: nn.Module,
    tokens: Tensor | np.ndarray,
    loss_mask: Tensor | np.ndarray,
    num_bytes: int,
    *,
    batch_size: int,
) -> float:
    """Compressed size of the counted tokens in bits, per byte of text that they stand for.

    Routing of scope ``sequence`` pools each whole window, so this is then no causal model's loss;
    ``evals.leakage`` measures by how much.

    Args:
        tokens: ids (n, L + 1), consecutive windows of a text; only the last may be padded.
        loss_mask: bool (n, L); whether predicting ``tokens[:, 1:]`` counts.
        num_bytes: bytes behind the counted tokens.

    Raises:
        ConfigError: when nothing is counted.
    """
    tokens_NL, counted_NL = torch.as_tensor(tokens).long(), torch.as_tensor(loss_mask).bool()
    if num_bytes < 1 or not counted_NL.any():
        raise ConfigError("bits per byte needs validation text with at least one counted token")
    real_NL = torch.arange(counted_NL.shape[1]) < real_lengths(counted_NL)[:, None]
    device = device_of(model)
    nats = 0.0
    with only_observing(model):
        for rows in counted_NL.any(1).nonzero().flatten().split(batch_size):
            batch_BL, counted_BL = tokens_NL[rows].to(device), counted_NL[rows].to(device)
            logits_BLV = model(batch_BL[:, :-1], real_NL[rows].to(device)).logits_BLV
            loss_N = F.cross_entropy(
                logits_BLV[counted_BL].float(), batch_BL[:, 1:][counted_BL], reduction="none"
            )
            nats += float(loss_N.double().sum())
    return nats / math.log(2) / num_bytes


def _score(items: list[dict[str, Any]], metrics: list[str]) -> dict[str, Any]:
    """A task's part of the record: its first metric as the value, the others as extras."""
    headline, *others = metrics
    hits = np.array([item[headline] for item in items], dtype=float)
    targets = Counter(str(item["target"]) for item in items)
    options = [len(item["arguments"]) for item in items]
    spread = float(hits.std(ddof=1)) if len(hits) > 1 else 0.0
    return {
        "metric": headline,
        "value": float(hits.mean()),
        "stderr": spread / math.sqrt(len(hits)),
        "num_items": len(hits),
        "chance": float(np.mean([1 / n if n > 1 else 0.0 for n in options])),
        "majority": max(targets.values()) / len(items),
        "extra": {name: float(np.mean([item[name] for item in items])) for name in others},
    }


def _sample(item: dict[str, Any], headline: str) -> dict[str, Any]:
    prediction, target = item["filtered_resps"][0], item["target"]
    if len(item["arguments"]) > 1:  # one request per option, each (log-likelihood, is greedy)
        best = int(np.argmax([score for score, _ in item["filtered_resps"]]))
        prediction, target = (item["arguments"][i][1].strip() for i in (best, target))
    return {
        "doc_hash": item["doc_hash"],
        "doc_id": item["doc_id"],
        "correct": int(item[headline]),
        "prediction": prediction,
        "target": target,
    }
