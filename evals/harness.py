"""Scores of a model in memory: lm-eval tasks over local files, and bits per byte.

An evaluation is a pure observation. It depends on the weights, the items and ``context_length``
alone: not on batch size, padding, autocast or the training phase; and it leaves every random
number generator and the model's train/eval modes as they were.

B batch, L length, N scored tokens, V vocabulary.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lm_eval.api.model import TemplateLM
from lm_eval.evaluator import evaluate
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from torch import Tensor, nn
from torch.nn import functional as F

from evals.local_tasks import load_task, quiet, task_names
from evals.observing import device_of, only_observing
from moc.config import nearest
from moc.data.document import TURN_END

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

    from moc.data.tokenizer import Tokenizer

log = logging.getLogger(__name__)


def evaluate_model(
    model: nn.Module,
    tokenizer: Tokenizer,
    *,
    tasks: Sequence[str],
    task_dir: Path,
    context_length: int,
    batch_size: int,
    num_items: int,
) -> tuple[dict[str, dict[str, Any]], dict[str, list[dict[str, Any]]]]:
    """Run ``tasks`` on the first ``num_items`` items of ``task_dir/<task>.jsonl``.

    Under data parallelism every rank calls this with the same arguments and gets the same result.

    Returns:
        Scores, ``{task: {"metric", "value", "stderr", "num_items", "chance", "majority",
        "extra"}}``, and samples, ``{task: [{"doc_hash", "doc_id", "correct", "prediction",
        "target"}]}``. ``doc_hash`` names an item across boundaries, arms and seeds.

    Raises:
        ValueError: for an unknown task, a missing or empty item file, or no items asked for.
    """
    known = task_names()
    for name in tasks:
        if name not in known:
            raise ValueError(f"evals.tasks: no task {name!r}; {nearest(name, known)}")
    if num_items < 1:
        raise ValueError(f"evals.num_items must be at least 1, not {num_items}")
    if not tasks:
        return {}, {}
    with only_observing(model), quiet():
        study_lm = StudyLM(model, tokenizer, context_length=context_length, batch_size=batch_size)
        loaded = {name: load_task(name, task_dir) for name in tasks}
        results = evaluate(
            study_lm, {"tasks": loaded}, limit=num_items, bootstrap_iters=0, log_samples=True
        )
    scores, samples = {}, {}
    for name, task in loaded.items():
        metrics = [metric["metric"] for metric in task.config.metric_list]
        logged = results["samples"][name]
        scores[name] = _score(logged, metrics)
        samples[name] = [_sample(item, metrics[0]) for item in logged]
    return scores, samples


def bits_per_byte(
    model: nn.Module,
    tokens: Tensor | np.ndarray,
    loss_mask: Tensor | np.ndarray,
    num_bytes: int,
    *,
    batch_size: int,
    device: torch.device | str | None = None,
) -> float:
    """Compressed size of the counted tokens in bits, per byte of text that they stand for.

    Args:
        tokens: ids (n, L + 1), consecutive windows of a text; only the last may be padded.
        loss_mask: bool (n, L); whether predicting ``tokens[:, 1:]`` counts.
        num_bytes: bytes behind the counted tokens.
        device: where the batches go; None: where the model is.

    Raises:
        ValueError: when nothing is counted.
    """
    tokens_NL = torch.as_tensor(tokens).long()
    counted_NL = torch.as_tensor(loss_mask).bool()
    if num_bytes < 1 or not counted_NL.any():
        raise ValueError("bits per byte needs validation text with at least one counted token")
    valid_NL = torch.ones_like(counted_NL)
    last_counted = counted_NL[-1].nonzero()
    valid_NL[-1, int(last_counted[-1]) + 1 if len(last_counted) else 0 :] = False
    device = device_of(model) if device is None else device
    nats = 0.0
    with only_observing(model):
        for rows in counted_NL.any(1).nonzero().flatten().split(batch_size):
            batch_BL, counted_BL = tokens_NL[rows].to(device), counted_NL[rows].to(device)
            logits_BLV = model(batch_BL[:, :-1], valid_NL[rows].to(device)).logits_BLV
            loss_N = F.cross_entropy(
                logits_BLV[counted_BL].float(), batch_BL[:, 1:][counted_BL], reduction="none"
            )
            nats += float(loss_N.double().sum())
    return nats / math.log(2) / num_bytes


class StudyLM(TemplateLM):
    """A ``Transformer`` (or anything with its forward) as lm-eval's language model.

    Text is encoded with control tokens mapped, and nothing is put before a prompt. What does not
    fit into ``context_length`` is cut off at the left: a scored sequence keeps its last
    ``context_length + 1`` tokens (the last one is only predicted), a prompt to be continued keeps
    its last ``context_length - max_gen_toks``.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Tokenizer,
        *,
        context_length: int,
        batch_size: int,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self.context_length = context_length
        self.batch_size = batch_size
        self._device = torch.device(device) if device is not None else device_of(model)

    @property
    def eot_token_id(self) -> int:
        return self.tokenizer.eos_id

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        return self.tokenizer.encode(string)

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = True
    ) -> list[tuple[float, bool]]:
        return super().loglikelihood(requests, disable_tqdm=disable_tqdm)

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = True
    ) -> list[float]:
        """Log-likelihood of whole texts, each token predicted once, in windows of L tokens."""
        totals = []
        for (text,) in (request.args for request in requests):
            windows = get_rolling_token_windows(
                self.tok_encode(text), self.prefix_token_id, self.context_length, context_len=1
            )
            pairs = [(("", ""), *make_disjoint_window(window)) for window in windows]
            totals.append(sum(score for score, _ in self._loglikelihood_tokens(pairs)))
        return totals

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        limit = self.context_length
        rows, num_scored = [], []
        for _, context, continuation in requests:
            if len(continuation) > limit:
                raise ValueError(
                    f"an answer of {len(continuation)} tokens does not fit evals.context_length "
                    f"{limit}; raise it"
                )
            rows.append([*(context or [self.prefix_token_id]), *continuation])
            num_scored.append(len(continuation))
        self._warn_of_cuts(sum(len(row) > limit + 1 for row in rows), len(rows))
        rows = [row[-(limit + 1) :] for row in rows]
        scores = [(0.0, True)] * len(rows)  # what an empty continuation gets
        for batch in self._batches(rows, [i for i, count in enumerate(num_scored) if count]):
            tokens_BL, valid_BL = self._pad([rows[i][:-1] for i in batch])
            with only_observing(self.model):
                logits_BLV = self.model(tokens_BL, valid_BL).logits_BLV
            for b, i in enumerate(batch):
                end, count = len(rows[i]) - 1, num_scored[i]
                logprobs_NV = logits_BLV[b, end - count : end].float().log_softmax(-1)
                targets_N = torch.tensor(rows[i][-count:], device=logprobs_NV.device)
                chosen_N = logprobs_NV.gather(1, targets_N[:, None])
                greedy = bool((logprobs_NV.argmax(-1) == targets_N).all())
                scores[i] = (float(chosen_N.double().sum()), greedy)
        return scores

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """Greedy continuations, up to end of text, end of turn or one of the ``until`` strings.

        Raises:
            ValueError: when a task asks for sampling.
        """
        from moc.model import generate

        prompts, settings, num_cut = [], [], 0
        for text, options in (request.args for request in requests):
            if options.get("do_sample"):
                raise ValueError("a task asks for do_sample: true, but answers are greedy here")
            until, max_new = options.get("until") or [], int(options.get("max_gen_toks", 128))
            settings.append((max_new, (until,) if isinstance(until, str) else tuple(until)))
            prompt = self.tok_encode(text) or [self.prefix_token_id]
            room = max(1, self.context_length - max_new)
            num_cut += len(prompt) > room
            prompts.append(prompt[-room:])
        self._warn_of_cuts(num_cut, len(prompts))
        answers = [""] * len(prompts)
        for max_new, until in sorted(set(settings)):
            group = [i for i, setting in enumerate(settings) if setting == (max_new, until)]
            stop_ids = self._stop_ids(until)
            for batch in self._batches(prompts, group):
                with only_observing(self.model):
                    new_tokens = generate(
                        self.model,
                        [prompts[i] for i in batch],
                        max_new_tokens=max_new,
                        stop_ids=stop_ids,
                        max_length=self.context_length,
                    )
                for i, tokens in zip(batch, new_tokens, strict=True):
                    answers[i] = _cut(self.tokenizer.decode(tokens), until)
        return answers

    def _stop_ids(self, until: tuple[str, ...]) -> set[int]:
        """End of text, end of turn, and every token whose text begins with an ``until`` string."""
        ends = (*until, TURN_END)
        ids = range(self.tokenizer.vocab_size)
        return {self.eot_token_id, *(i for i in ids if self.tokenizer.decode([i]).startswith(ends))}

    def _batches(self, rows: Sequence[Sequence[int]], chosen: list[int]) -> Iterator[list[int]]:
        """Indices of ``chosen`` rows in batches of similar lengths, the longest first."""
        chosen = sorted(chosen, key=lambda i: len(rows[i]), reverse=True)
        for start in range(0, len(chosen), self.batch_size):
            yield chosen[start : start + self.batch_size]

    def _pad(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Tokens (B, L) padded on the right, and where they are real."""
        longest = max(len(row) for row in rows)
        padded = [[*row, *[self.eot_token_id] * (longest - len(row))] for row in rows]
        lengths_B = torch.tensor([len(row) for row in rows], device=self.device)
        valid_BL = torch.arange(longest, device=self.device) < lengths_B[:, None]
        return torch.tensor(padded, device=self.device), valid_BL

    def _warn_of_cuts(self, num_cut: int, num_requests: int) -> None:
        if num_cut:
            log.warning(
                "%d of %d prompts do not fit evals.context_length %d and were cut at the left",
                num_cut, num_requests, self.context_length,
            )  # fmt: skip


def _score(items: list[dict[str, Any]], metrics: list[str]) -> dict[str, Any]:
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


def _cut(text: str, until: Sequence[str]) -> str:
    return text[: min([len(text), *(text.find(stop) for stop in until if stop in text)])]
