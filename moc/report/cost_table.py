"""What every arm has and costs."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

from moc.plan.bank_optimizer import bank_optimizer
from moc.report import phases
from moc.report.cells import MISSING, count, percent, shared_text, signed, table_of
from moc.report.layout import Table
from moc.report.looking_ahead import iso_flop_arm
from moc.report.results import NON_CAUSAL, Results
from moc.report.runs import Run

MEGABYTE = 2**20


def cost(results: Results) -> Table:
    """What each arm has and costs, from the plan, with the throughput measured."""
    rows: list[list[str]] = []

    def add(label: str, cell: Callable[[str], str]) -> None:
        rows.append([label, *(cell(arm) for arm in results.arms)])

    def planned(*path: str) -> Callable[[str], str]:
        return lambda arm: count(_dig(results.plan, "arms", arm, *path))

    shapes = {arm: _shape(results.model(arm)) for arm in results.arms}
    for key in ("layers × width, MLP width", "memory: chapters × tokens", "chapters read"):
        add(key, lambda arm, key=key: shapes[arm].get(key, MISSING))  # type: ignore[misc]
    add("routing", lambda arm: results.routing(arm).replace(NON_CAUSAL, " (non-causal)"))
    add("bank optimizer", lambda arm: bank_optimizer(results.study["arms"][arm]))
    for key in ("total", "trainable", "backbone", "memory_layers", "bank"):
        add(f"parameters, {key.replace('_', ' ')}", planned("parameters", key))
    add(
        "forward FLOPs per sequence, paper accounting",
        planned("flops", "paper_forward_per_sequence"),
    )
    add(
        "training FLOPs per token, hardware accounting",
        planned("flops", "hardware_train_per_token"),
    )
    for key, what in (("iso_flop", "iso-FLOP (training, per token)"), ("iso_param", "iso-param")):
        if key == "iso_flop" or any(_deviation(results, arm, key) for arm in results.arms):
            add(
                f"deviation from {what}",
                lambda arm, key=key: _deviation(results, arm, key) or MISSING,  # type: ignore[misc]
            )
    if baseline := iso_flop_arm(results):
        for accounting, key in (
            ("paper accounting, forward", "paper_forward_per_sequence"),
            ("hardware accounting, training", "hardware_train_per_token"),
        ):
            add(
                f"FLOPs over those of {results.label(baseline)}, {accounting}",
                lambda arm, key=key: _over_baseline(results, arm, baseline, key),  # type: ignore[misc]
            )
    for phase in results.phases:
        add(f"optimizer steps, {phase}", planned("steps", phase))
    for phase in results.phases:
        add(
            f"measured tokens/s, {phase}",
            lambda arm, phase=phase: count(results.tokens_per_sec(arm, phase)),  # type: ignore[misc]
        )
    for phase in results.phases:
        waits = {arm: results.data_wait(arm, phase) for arm in results.arms}
        if any(wait is not None for wait in waits.values()):
            add(
                f"waiting for data, % of the time, {phase}",
                lambda arm, waits=waits: percent(waits[arm]),  # type: ignore[misc]
            )
    add("training time per seed, s", lambda arm: count(_over_seeds(results, arm, _training_sec)))
    add("evaluation time per seed, s", lambda arm: count(_over_seeds(results, arm, _eval_sec)))
    for key in ("state", "activation"):
        add(
            f"planned memory, {key}, MB",
            lambda arm, key=key: _megabytes(_dig(results.plan, "arms", arm, f"{key}_bytes")),  # type: ignore[misc]
        )
    if any(_peak_bytes(results, run) for run in results.runs.values()):
        add(
            "measured peak memory, MB",
            lambda arm: _megabytes(_over_seeds(results, arm, _peak_bytes)),
        )
    header = ["", *(results.label(arm) for arm in results.arms)]
    caption = "Shape and planned cost of every arm, and the time and memory measured"
    notes = [
        "Measured on the machine of the study: throughput is the median of what was logged, "
        "training time the tokens of every phase over it; evaluations are those at boundaries, "
        "with controls, and in phases. Memory is per device; activations are a rough estimate."
    ]
    shared = dict.fromkeys(
        f"{results.label(run.arm)}: {text}"
        for run in results.runs.values()
        if (text := shared_text(results, run))
    )
    if shared:
        notes.append(
            f"Trained once and counted for each arm that shares them: {'; '.join(shared)}."
        )
    return table_of(results, "cost", caption, header, rows, notes=notes)


def _shape(model: dict[str, Any] | None) -> dict[str, str]:
    if model is None:
        return {}
    shape = {
        "layers × width, MLP width": f"{model['num_layers']} × {model['dim']}, {model['mlp_dim']}"
    }
    memory = model["memory"]
    if memory:
        routed = "all" if memory["num_routed"] is None else f"{memory['num_routed']} routed"
        size = f"{memory['num_chapters']} × {memory['chapter_tokens']}"
        shape["memory: chapters × tokens"] = size
        shape["chapters read"] = f"{routed} + {memory['num_shared']} shared"
    return shape


def _deviation(results: Results, arm: str, key: str) -> str:
    """Of the arm from the one it is matched to; empty where it is matched to none."""
    entry = _dig(results.plan, "arms", arm, key)
    if not isinstance(entry, dict) or entry.get("relative_error") is None:
        return ""
    return f"{signed(100 * entry['relative_error'], 2)}% of {results.label(entry['target'])}"


def _over_baseline(results: Results, arm: str, baseline: str, key: str) -> str:
    mine, theirs = (_dig(results.plan, "arms", a, "flops", key) for a in (arm, baseline))
    if not isinstance(mine, (int, float)) or not isinstance(theirs, (int, float)):
        return MISSING
    return f"{signed(100 * (mine / theirs - 1), 1)}%"


def _over_seeds(
    results: Results, arm: str, measure: Callable[[Results, Run], float | None]
) -> float | None:
    values = [measure(results, run) for run in results.runs_of(arm)]
    known = [value for value in values if value]
    return statistics.fmean(known) if known else None


def _training_sec(results: Results, run: Run) -> float | None:
    """None before all phases have been trained."""
    total = 0.0
    for name, phase in phases.phases_of(results.study, run.arm).items():
        speeds = run.series(f"{name}/train/tokens_per_sec")[1]
        if not speeds or name not in run.evals:
            return None
        total += phases.trained_tokens(phase) / statistics.median(speeds)
    return total


def _eval_sec(results: Results, run: Run) -> float:
    total = sum(record.get("elapsed_sec") or 0.0 for record in run.evals.values())
    return total + sum(sum(run.series(f"{phase}/eval/elapsed_sec")[1]) for phase in results.phases)


def _peak_bytes(results: Results, run: Run) -> float | None:
    return run.info.get("peak_memory_bytes") or None


def _megabytes(value: object) -> str:
    return count(value / MEGABYTE) if isinstance(value, (int, float)) else MISSING


def _dig(tree: object, *path: str) -> object:
    for key in path:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree
