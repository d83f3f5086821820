"""Item records of made-up runs: who was right on what. Shares come out exactly as asked for."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Record = dict[str, Any]

ATTRIBUTES = {"birth_date": 600, "university": 40, "employer": 60, "employer_city": 30}
OPTIONS = ["1", "2", "3", "4"]


def fake_samples(
    task: str, value: float, *, num_items: int, who: str, source: str | None
) -> list[Record]:
    """``num_items`` items of which a share ``value`` is right: the easy ones first, with an
    accident of ``who`` (arm, seed, boundary) added, so that runs are right on similar items."""
    easy, clusters, golds = _items(task, num_items)
    rng = random.Random(f"{task}-{who}")
    order = sorted(range(num_items), key=lambda i: -easy[i] - 0.5 * rng.random())
    right = set(order[: round(value * num_items)])
    choice = "choice" in task
    facts = task.startswith("facts")
    samples = []
    for i in range(num_items):
        record: Record = {
            "doc_hash": hashlib.sha256(f"{task}-{i}".encode()).hexdigest(),
            "doc_id": i,
            "correct": int(i in right),
            "prediction": f"value {i if i in right else 0}",
            "target": f"value {i}",
        }
        record["cluster"] = f"{source}-{clusters[i]}" if facts else record["doc_hash"]
        if facts:
            attribute = list(ATTRIBUTES)[i % len(ATTRIBUTES)]
            record |= {"attribute": attribute, "pool_size": ATTRIBUTES[attribute]}
        if choice:
            gold = golds[i]
            # who is wrong likes the first option
            picked = gold if i in right else rng.choices(range(4), (6, 1, 1, 1))[0]
            picked = (gold + 1) % 4 if i not in right and picked == gold else picked
            bits = 0.4 if i in right else 7.0
            record |= {"choice": picked, "gold": gold, "correct_norm": record["correct"]}
            record |= {"logprobs": [-1.0 if o == picked else -9.0 for o in range(4)]}
            record |= {"gold_bits": bits, "gold_bytes": 10}
        samples.append(record)
    return samples


def fake_score(
    samples: Sequence[Record], *, chance: float, majority: float, source: str | None
) -> Record:
    """The record of evals.json that belongs to ``samples``."""
    num_items = len(samples)
    value = sum(sample["correct"] for sample in samples) / num_items
    baseline = max(chance, majority)
    choice = "choice" in samples[0]
    return {
        "metric": "acc" if choice else "exact_match",
        "value": value,
        "stderr": math.sqrt(value * (1 - value) / (num_items - 1)),
        "num_items": num_items,
        "chance": chance,
        "majority": majority,
        "centred": (value - baseline) / (1 - baseline),
        "extra": {"acc_norm": value} if choice else {},
        "bits_per_byte": sum(s["gold_bits"] for s in samples) / (10 * num_items)
        if choice
        else None,
        "predictions": _histogram(samples, "choice") if choice else {},
        "targets": _histogram(samples, "gold") if choice else {},
        "source": source,
        "num_fewshot": 0,
    }


def write_samples(folder: Path, task: str, samples: Sequence[Record]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(sample) + "\n" for sample in samples)
    (folder / f"{task}.jsonl").write_text(lines)


def _histogram(samples: Sequence[Record], key: str) -> dict[str, int]:
    counts = Counter(sample[key] for sample in samples)
    return {label: counts[place] for place, label in enumerate(OPTIONS)}


@functools.cache
def _items(task: str, num_items: int) -> tuple[list[float], list[int], list[int]]:
    """How easy every item is, whom it asks about (four questions each) and its right option."""
    rng = random.Random(task)
    people = [rng.random() for _ in range(num_items)]
    easy = [rng.random() + people[i // 4] for i in range(num_items)]
    return easy, [i // 4 for i in range(num_items)], [rng.randrange(4) for _ in range(num_items)]
