"""Scores of a model in memory: lm-eval tasks, and bits per byte.

An evaluation is a pure observation. It depends on the weights, the items and ``context_length``
alone: not on batch size, padding, autocast or the training phase; and it leaves every random
number generator and the model's train/eval modes as they were.

B batch, L length, N windows or scored tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evals.scoring.loading import load
from evals.scoring.observing import device_of, only_observing
from evals.scoring.paired_task import contained
from evals.scoring.study_lm import RouteOn, StudyLM
from evals.scoring.suites import PAPER_SHOTS
from evals.scoring.user_tasks import UserTasks
from evals.scoring.windows import real_lengths
from moc.errors import ConfigError
from moc.model.memory.build import is_causal
from moc.store.rundir import ON_ANSWER

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
    num_items: int | None = None,
    num_fewshot: Mapping[str, int] = MappingProxyType({}),
    hub_mirror: str | None = None,
    user_tasks: UserTasks | None = None,
    route_on: Literal["context", "full", "both"] = "context",
    choices_only: bool = False,
) -> tuple[Scores, Samples]:
    """Run ``tasks``: ours over ``task_dir/<task>.jsonl``, the user's, any other as lm-eval has it.

    A group of lm-eval is one task: the items of all its subtasks together. Under data parallelism
    every rank calls this with the same arguments and gets the same result.

    Args:
        tasks: names as ``evals.scoring.task_names.expand_tasks`` gives them.
        num_items: per task, None for all: of ours the first, of others a subset spread evenly over
            the task; that of a smaller number is part of that of a larger.
        num_fewshot: examples before a question, by task; others as in ``suites``, else as the
            task's config says.
        hub_mirror: see ``evals.scoring.hub``; None: ``$MOC_HUB_MIRROR``, else the hub itself.
        user_tasks: the user's own.
        route_on: see ``StudyLM``. ``both``: on the context, and multiple-choice tasks, if the model
            is not causal, once more on the answer as ``<task>.full``.
        choices_only: leave out the tasks whose answers are written.

    Returns:
        By task: the record of ``records.score`` with ``"num_fewshot"``, and the samples of
        ``records.sample``, those of groups with ``"subtask"``. ``doc_hash`` names an item across
        boundaries, arms and seeds.

    Raises:
        ConfigError: for an unknown task, no items asked for, or data that cannot be had.
        CheckpointError: when an item file of ours is missing or empty.
    """
    if num_items is not None and num_items < 1:
        raise ConfigError(f"evals.num_items must be at least 1, or null for all, not {num_items}")
    passes: dict[str, RouteOn] = {"": "context" if route_on == "both" else route_on}
    if route_on == "both" and not is_causal(model.config):
        passes[ON_ANSWER] = "full"
    shots = {**PAPER_SHOTS, **num_fewshot}
    scores: Scores = {}
    samples: Samples = {}
    for name in tasks:
        with only_observing(model), contained():
            task = load(name, task_dir, num_items, shots.get(name), hub_mirror, user_tasks)
            for ending, routed_on in passes.items():
                # an answer that has yet to be written cannot steer
                if not task.is_choice and (ending or choices_only):
                    continue
                study_lm = StudyLM(
                    model,
                    tokenizer,
                    context_length=context_length,
                    batch_size=batch_size,
                    route_on=routed_on,
                )
                scores[name + ending], samples[name + ending] = task.run(study_lm)
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
    ``evals.measures.leakage`` measures by how much.

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
            logits_BLV = model(batch_BL[:, :-1], pool_BL=real_NL[rows].to(device)).logits_BLV
            loss_N = F.cross_entropy(
                logits_BLV[counted_BL].float(), batch_BL[:, 1:][counted_BL], reduction="none"
            )
            nats += float(loss_N.double().sum())
    return nats / math.log(2) / num_bytes
