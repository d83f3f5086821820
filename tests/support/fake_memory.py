"""What evals.json and memory_use.jsonl say about memory, made up: for tests of what reads them."""

from __future__ import annotations

import math
import random
from typing import Any

from moc.model.config import ModelConfig
from moc.model.memory.build import build_memory, is_causal
from moc.model.memory.seam import Kind

# bits per token at the start, pretrain, ift and more boundaries under the routing trained with
LOSSES = {"people": (11.0, 1.85, 2.3, 2.6), "skills": (11.1, 6.2, 2.1, 3.3)}
OFFSETS = {"moc": -0.12, "moc_segment": -0.05, "moc_token": -0.03, "iso_flop": 0.0}
LEAKAGE = {"people": (0.0, 0.08, 0.055, 0.05), "skills": (0.0, 0.02, 0.065, 0.04)}
MISMATCH = 0.3  # the part of the leakage that is not the future's
# on the context, on the answer too
CHOICE = {"facts_choice": ((0.25, 0.83, 0.74, 0.7), (0.25, 0.86, 0.8, 0.75))}
NUM_WINDOWS, LENGTH, NUM_BINS = 32, 128, 8


def fake_leakage(model: ModelConfig, arm: str, seed: int, index: int) -> dict[str, Any]:
    """The ``leakage`` part of the evals.json of boundary ``index``."""
    causal = is_causal(model)
    rng = random.Random(f"leakage-{arm}-{seed}-{index}")
    sources: dict[str, Any] = {}
    for source, losses in LOSSES.items():
        trained = 1 if index else 0
        full = losses[index] + trained * (OFFSETS.get(arm, 0.1) + rng.uniform(-0.02, 0.02))
        entry = {"num_windows": NUM_WINDOWS, "num_tokens": NUM_WINDOWS * LENGTH, "full": full}
        if not causal:
            leaked = LEAKAGE[source][index] + trained * rng.uniform(-0.005, 0.005)
            entry |= {
                "prefix": full + leaked,
                "counterfactual": full + (1 - MISMATCH) * leaked,
                "leakage": _interval(leaked, 0.012 * trained),
                "future": _interval((1 - MISMATCH) * leaked, 0.012 * trained),
                "mismatch": _interval(MISMATCH * leaked, 0.006 * trained),
                "by_position": _by_position(leaked, rng, 0.03 * trained),
            }
        sources[source] = entry
    tasks = {
        task: {
            "num_items": 200,
            "context": context[index],
            "full": full[index] + 0.01 * seed,
            "leakage": _interval(full[index] + 0.01 * seed - context[index], 0.04),
        }
        for task, (context, full) in CHOICE.items()
        if not causal
    }
    return {"causal": causal, "sources": sources, "tasks": tasks}


def fake_memory(model: ModelConfig, arm: str, seed: int, index: int) -> dict[str, Any]:
    """The ``memory`` part of the evals.json of boundary ``index``; empty without a choice."""
    if model.memory is None or not (kind := build_memory(model)).num_picked:
        return {}
    layers = [str(layer) for layer in model.memory_layers()]
    record: dict[str, Any] = {"sources": {}}
    for source in LOSSES:
        load = {layer: _load(kind, f"{arm}-{seed}-{source}-{layer}", index) for layer in layers}
        record["sources"][source] = {
            "num_tokens": NUM_WINDOWS * LENGTH,
            "load": load,
            "health": {layer: {"effective_read": 5.5} for layer in layers},
        }
    if index:
        rng = random.Random(f"drift-{arm}-{seed}-{index}")
        record["drift"] = {
            layer: (1.4, 0.2, 0.3)[index - 1] + rng.random() / 10 for layer in layers
        }
    return record


def fake_use(
    model: ModelConfig, phase: str, step: int, tokens: int, rng: random.Random, *, last: bool
) -> list[dict[str, Any]]:
    """One line per memory layer of memory_use.jsonl. Of product keys only a phase's ``last`` lists
    the load, and none has a router's figures."""
    kind = build_memory(model)
    assert kind.num_picked
    records = []
    spread = 0.7 if phase == "pretrain" else 1.1
    for layer in model.memory_layers():
        weights = [
            0.0 if rng.random() < 0.05 else math.exp(rng.gauss(0, spread))
            for _ in range(kind.num_rows - kind.num_always)
        ]
        groups = 2560 * kind.num_picked
        load = [0] * kind.num_always + [round(groups * w / sum(weights)) for w in weights]
        routed = load[kind.num_always :]
        share = [n / sum(routed) for n in routed]
        entropy = -sum(p * math.log(p) for p in share if p) / math.log(len(share))
        records.append(
            {
                "phase": phase,
                "step": step,
                "tokens": tokens,
                "time": 1_772_445_600.0 + tokens / 16_000,
                "layer": layer,
                "load": load if kind.router or last else None,
                "window_tokens": 327_680,
                "coverage": 0.9 - rng.random() / 10,
                "coverage_tokens": 8192,
                "num_always": kind.num_always,
                **({"shared_mass": 0.18 + rng.random() / 10} if kind.router else {}),
                "load_max_over_mean": max(share) * len(share),
                "entropy": entropy,
                "effective_rows": len(share) ** entropy,
                "effective_read": 5.5,
                "dead_share": routed.count(0) / len(routed),
                "kl_to_uniform": (1 - entropy) * math.log(len(share)),
                **({"balance_loss": 1.1, "z_loss": 0.2} if kind.router else {}),
            }
        )
    return records


def _by_position(leaked: float, rng: random.Random, half: float) -> list[dict[str, Any]]:
    """The leakage falls along the sequence: the more of it is past, the less is ahead."""
    weights = [math.exp(-0.5 * place) for place in range(NUM_BINS)]
    width = LENGTH // NUM_BINS
    return [
        {
            "start": place * width,
            "end": (place + 1) * width,
            "num_tokens": NUM_WINDOWS * width,
            "leakage": _interval(
                leaked * NUM_BINS * weight / sum(weights) + half / 4 * rng.uniform(-1, 1), half
            ),
        }
        for place, weight in enumerate(weights)
    ]


def _interval(value: float, half: float) -> dict[str, float]:
    return {"value": value, "low": value - half, "high": value + half}


def _load(kind: Kind, name: str, index: int) -> list[int]:
    """Picks per row; every boundary moves a part of them."""
    load = [0] * kind.num_rows
    for boundary in range(index + 1):
        rng = random.Random(f"{name}-{boundary}")
        for _ in range(400 if boundary == 0 else 150):
            load[rng.randrange(kind.num_always, kind.num_rows)] += 1
    return load
