"""What is kept of a task: its scores, and one sample per item.

An item is a dict that lm-eval logged; ``options`` are the texts it offers, in order, or none where
the answer is written.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

# Under these names data sets keep a text that several of their questions are about.
_PASSAGES = ("passage", "paragraph", "article", "context")


def sample(
    item: dict[str, Any],
    metrics: Sequence[str],
    options: Sequence[str],
    gold: int | None,
    *,
    ours: bool,
) -> dict[str, Any]:
    """One item's line in ``samples/<task>.jsonl``.

    Args:
        metrics: of the task, the headline first.
        gold: the right option's place, where there are options.
        ours: whether the item is one that ``evals.scoring.study_tasks`` wrote.

    Returns:
        ``{"doc_hash", "doc_id", "correct", "prediction", "target", "cluster"}``, of facts also
        ``"attribute"`` and ``"pool_size"``, and with options ``{"choice", "gold", "logprobs",
        "correct_norm", "gold_bits", "gold_bytes"}``. Log-probabilities are in nats and, like the
        bytes, those of the whole continuation, its leading space included.
    """
    doc, answer, target = item["doc"], item["filtered_resps"][0], item["target"]
    if isinstance(answer, tuple):  # its log-likelihood, and whether the model would write it
        answer = target if answer[1] else ""
    record = {
        "doc_hash": item["doc_hash"],
        "doc_id": item["doc_id"],
        "correct": _plain(item[metrics[0]]),
        "prediction": answer,
        "target": target,
        "cluster": _cluster(doc, ours) or item["doc_hash"],
    }
    if ours:
        record |= {key: doc[key] for key in ("attribute", "pool_size") if key in doc}
    if gold is None:
        return record
    logprobs = [float(score) for score, _ in item["filtered_resps"][: len(options)]]
    choice = int(np.argmax(logprobs))
    record |= {
        "prediction": options[choice].strip(),
        "target": options[gold].strip(),
        "choice": choice,
        "gold": gold,
        "logprobs": logprobs,
        "gold_bits": -logprobs[gold] / math.log(2),
        "gold_bytes": len(item["arguments"][gold][1].encode()),
    }
    if "acc_norm" in metrics:
        record["correct_norm"] = _plain(item["acc_norm"])
    return record


def score(
    samples: Sequence[dict[str, Any]],
    items: Sequence[dict[str, Any]],
    metrics: Sequence[str],
    options: Sequence[Sequence[str]],
    *,
    ours: bool,
) -> dict[str, Any]:
    """A task's record, from its samples and the items behind them, of all subtasks together.

    Returns:
        ``{"metric", "value", "stderr", "num_items", "chance", "majority", "centred", "extra",
        "bits_per_byte", "predictions", "targets", "source"}``. ``majority`` is what always giving
        the commonest answer scores: the commonest place among options, else the commonest text.
        ``centred`` is 0 at the better of chance and majority and 1 at all right; where that
        baseline is all right, nothing can be above it and it is 0. The histograms go by the
        options' texts where all items offer the same, else by place, counted from 1.
    """
    headline, *others = metrics
    hits = np.array([sample["correct"] for sample in samples], dtype=float)
    value = float(hits.mean())
    is_choice = "gold" in samples[0]
    targets = Counter(str(sample["gold" if is_choice else "target"]) for sample in samples)
    chance = float(np.mean([1 / len(offered) if offered else 0.0 for offered in options]))
    majority = max(targets.values()) / len(samples)
    baseline = max(chance, majority)
    record: dict[str, Any] = {
        "metric": headline,
        "value": value,
        "stderr": float(hits.std(ddof=1)) / math.sqrt(len(hits)) if len(hits) > 1 else 0.0,
        "num_items": len(hits),
        "chance": chance,
        "majority": majority,
        "centred": (value - baseline) / (1 - baseline) if baseline < 1 else 0.0,
        "extra": {name: float(np.mean([item[name] for item in items])) for name in others},
        "bits_per_byte": None,
        "predictions": {},
        "targets": {},
        "source": items[0]["doc"].get("source") if ours else None,
    }
    if is_choice:
        bits, num_bytes = (sum(s[key] for s in samples) for key in ("gold_bits", "gold_bytes"))
        record["bits_per_byte"] = bits / num_bytes
        for key, place in (("predictions", "choice"), ("targets", "gold")):
            record[key] = _histogram([sample[place] for sample in samples], options)
    return record


def _histogram(picked: Sequence[int], options: Sequence[Sequence[str]]) -> dict[str, int]:
    """How often each option was meant, zeros included."""
    shared = len({tuple(offered) for offered in options}) == 1
    most = max(len(offered) for offered in options)
    labels = options[0] if shared else [str(place + 1) for place in range(most)]
    counts = Counter(picked)
    return {label.strip(): counts[place] for place, label in enumerate(labels)}


def _cluster(doc: dict[str, Any], ours: bool) -> str | None:
    """Items of one cluster are not independent: about one person, or on one passage."""
    if ours:
        return (
            f"{doc['source']}-{doc['person_id']}" if {"source", "person_id"} <= set(doc) else None
        )
    passages = [doc[name] for name in _PASSAGES if isinstance(doc.get(name), str) and doc[name]]
    return hashlib.sha256(passages[0].encode()).hexdigest()[:16] if passages else None


def _plain(value: Any) -> int | float:
    """A score of one item: 0 or 1, or a part of 1."""
    return int(value) if float(value).is_integer() else float(value)
