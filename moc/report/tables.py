"""The tables of a report. Cells are text, ready to be shown."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from evals.forgetting import transition_deltas
from moc.report.cells import (
    MISSING,
    count,
    estimated,
    fixed,
    over_text,
    percent,
    signed,
    table_of,
)
from moc.report.estimates import over_seeds
from moc.report.forgetting_tables import forgetting_paired
from moc.report.layout import Table
from moc.report.looking_ahead import iso_flop_arm
from moc.report.raw import all_bits_per_byte, all_forgetting, all_scores
from moc.report.results import (
    NEAR,
    NEAR_NOTE,
    NON_CAUSAL,
    Results,
    Score,
    load_results,
    mean_over_seeds,
)
from moc.report.routing_tables import advantage, leakage, leakage_choice
from moc.rundir import ON_ANSWER


def result_tables(study_dir: Path) -> str:
    """Scores, changes and losses of a study as plain text, at most 100 columns wide.

    Raises:
        ValueError: if ``study_dir`` holds no study.
    """
    results = load_results(Path(study_dir))
    tables = [scores(results), *deltas(results), forgetting(results), forgetting_paired(results)]
    tables += [bits_per_byte(results), losses(results)]
    tables += [leakage(results), leakage_choice(results), advantage(results)]
    parts = [table.to_text() for table in tables if table.rows]
    caution = results.caution()
    return "\n\n".join([*parts, *([caution] if caution else [])]) + "\n"


def status(results: Results) -> Table:
    rows = [
        [results.label(arm), *(results.status(arm, seed) for seed in results.seeds)]
        for arm in results.arms
    ]
    header = ["arm", *(f"seed {seed}" for seed in results.seeds)]
    return table_of(results, "status", "How far each arm and seed has got", header, rows)


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
    add(
        "deviation from iso-FLOP (training, per token)",
        lambda arm: _iso_flop(results, arm),
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
    header = ["", *(results.label(arm) for arm in results.arms)]
    caption = "Shape and planned cost of every arm, and the median throughput measured"
    return table_of(results, "cost", caption, header, rows)


def scores(results: Results) -> Table:
    """Score of every task and arm at every boundary, with its interval and baselines."""
    rows = []
    for task in results.tasks:
        for arm in results.arms:
            found = [results.score(arm, boundary, task) for boundary in results.boundaries]
            any_score = next((score for score in found if score), None)
            if any_score is None and task.endswith(ON_ANSWER):
                continue  # causal routing never sees the answer: nothing was to be measured
            baselines = [
                percent(any_score.chance if any_score else None),
                percent(any_score.majority if any_score else None),
            ]
            rows.append([task, results.label(arm), *(_score(score) for score in found), *baselines])
    header = ["task", "arm", *results.boundaries, "chance", "majority"]
    notes = [f"{NEAR_NOTE}."] if any(NEAR in cell for row in rows for cell in row) else []
    if any(task.endswith(ON_ANSWER) for task in results.tasks):
        notes.append(f"{ON_ANSWER}: the answer being scored took part in the routing.")
    caption = (
        f"Score at each boundary, % of items correct [95% Wilson interval]{over_text(results)}"
    )
    return table_of(
        results, "scores", caption, header, rows, num_keys=2, notes=notes, raw=all_scores(results)
    )


def deltas(results: Results) -> list[Table]:
    """One table per transition: what every task's score was, is, and how it changed."""
    tables: list[Table] = []
    changes = {
        arm: transition_deltas(mean_over_seeds(results.task_matrices(arm))) for arm in results.arms
    }
    for row, (before, after) in enumerate(results.transitions if results.tasks else [], start=1):
        rows = [
            [
                results.label(arm),
                *(
                    _change(
                        results.score(arm, before, task),
                        results.score(arm, after, task),
                        changes[arm][row, column],
                    )
                    for column, task in enumerate(results.tasks)
                ),
            ]
            for arm in results.arms
        ]
        notes = (
            [f"{NEAR} not distinguishable from its baseline before: there was nothing to forget."]
            if any(NEAR in cell for row in rows for cell in row)
            else []
        )
        caption = (
            f"Change over {before} → {after}: score before → after (change), %{over_text(results)}"
        )
        name = f"delta-{before}-{after}"
        tables.append(table_of(results, name, caption, ["arm", *results.tasks], rows, notes=notes))
    return tables


def forgetting(results: Results) -> Table:
    """How far every evaluation ended below its best earlier boundary; nothing with one phase."""
    raw = all_forgetting(results) if results.transitions else []
    found: dict[tuple[object, ...], list[float]] = {}
    for record in raw:
        value = record["forgetting"]
        assert isinstance(value, float)
        key = (record["arm"], record["unit"], record["evaluation"])
        found.setdefault(key, []).append(value)

    def cell(arm: str, unit: str, name: str) -> str:
        digits, scale = (1, 100) if unit == "share" else (3, 1)
        estimate = over_seeds(found.get((arm, unit, name), []))
        return estimated(results, estimate, digits=digits, scale=scale)

    rows = [
        [
            results.label(arm),
            *(cell(arm, "share", task) for task in results.tasks),
            *(cell(arm, "bits_per_byte", source) for source in results.sources),
        ]
        for arm in results.arms
        if raw
    ]
    header = ["arm", *results.tasks, *(f"{source}, bits/byte" for source in results.sources)]
    over = over_text(results) + ", [95% t-interval over seeds]" * (len(results.seeds) > 1)
    caption = f"Forgetting since the best earlier boundary{over}"
    notes = [
        "Tasks: best earlier score minus the last, in points. Bits per byte: last minus lowest.",
        "Negative: better at the last boundary than at any before.",
    ]
    return table_of(results, "forgetting", caption, header, rows, notes=notes, raw=raw)


def bits_per_byte(results: Results) -> Table:
    """Validation loss on every source at every boundary, in bits per byte of text."""
    rows = []
    means = {arm: mean_over_seeds(results.source_matrices(arm)) for arm in results.arms}
    for column, source in enumerate(results.sources):
        for arm in results.arms:
            levels = means[arm][:, column]
            changes = transition_deltas(means[arm])[1:, column]  # not the one from the start
            cells = [fixed(value, 3) for value in levels.tolist()]
            cells += [signed(value, 3) for value in changes.tolist()]
            rows.append([source, results.label(arm), *cells])
    header = ["source", "arm", *results.boundaries]
    header += [f"{before} → {after}" for before, after in results.transitions]
    what = "Bits per byte of validation text (facts: unseen phrasings); lower is better"
    caption = f"{what}{over_text(results)}"
    raw = all_bits_per_byte(results)
    return table_of(results, "bits_per_byte", caption, header, rows, num_keys=2, raw=raw)


def losses(results: Results) -> Table:
    rows = [
        [
            results.label(arm),
            *(fixed(results.last_loss(arm, phase), 3) for phase in results.phases),
            *(count(results.tokens_per_sec(arm, phase)) for phase in results.phases),
        ]
        for arm in results.arms
    ]
    header = ["arm", *(f"loss, {phase}" for phase in results.phases)]
    header += [f"tokens/s, {phase}" for phase in results.phases]
    caption = "Training loss (mean over the last tenth of a phase) and throughput"
    return table_of(results, "losses", caption, header, rows)


def _score(score: Score | None) -> str:
    if score is None:
        return MISSING
    mark = f"{NEAR} " if score.near else ""
    return f"{mark}{percent(score.value)} [{100 * score.low:.0f}, {100 * score.high:.0f}]"


def _change(before: Score | None, after: Score | None, change: float) -> str:
    if before is None:
        return MISSING
    if after is None:
        return f"{percent(before.value)} → {MISSING}"
    mark = f"{NEAR} " if before.near else ""
    points = signed(100 * change, 1)
    return f"{mark}{percent(before.value)} → {percent(after.value)} ({points})"


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


def _iso_flop(results: Results, arm: str) -> str:
    entry = _dig(results.plan, "arms", arm, "iso_flop")
    if not isinstance(entry, dict) or entry.get("relative_error") is None:
        return MISSING
    return f"{signed(100 * entry['relative_error'], 2)}% of {results.label(entry['target'])}"


def _over_baseline(results: Results, arm: str, baseline: str, key: str) -> str:
    mine, theirs = (_dig(results.plan, "arms", a, "flops", key) for a in (arm, baseline))
    if not isinstance(mine, (int, float)) or not isinstance(theirs, (int, float)):
        return MISSING
    return f"{signed(100 * (mine / theirs - 1), 1)}%"


def _dig(tree: object, *path: str) -> object:
    for key in path:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree
