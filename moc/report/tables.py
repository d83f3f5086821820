"""The tables of a report. Cells are text, ready to be shown."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from evals.forgetting import transition_deltas
from moc.report.layout import Table
from moc.report.results import (
    NEAR,
    NEAR_NOTE,
    NON_CAUSAL_NOTE,
    Results,
    Score,
    load_results,
    mean_over_seeds,
)

MISSING = "—"


def result_tables(study_dir: Path) -> str:
    """Scores, changes and losses of a study as plain text, at most 100 columns wide.

    Raises:
        ValueError: if ``study_dir`` holds no study.
    """
    results = load_results(Path(study_dir))
    tables = [scores(results), *deltas(results), forgetting(results)]
    tables += [bits_per_byte(results), losses(results)]
    parts = [table.to_text() for table in tables if table.rows]
    caution = results.caution()
    return "\n\n".join([*parts, *([caution] if caution else [])]) + "\n"


def status(results: Results) -> Table:
    rows = [
        [results.label(arm), *(results.status(arm, seed) for seed in results.seeds)]
        for arm in results.arms
    ]
    header = ["arm", *(f"seed {seed}" for seed in results.seeds)]
    return _table(results, "status", "How far each arm and seed has got", header, rows)


def cost(results: Results) -> Table:
    """What each arm has and costs, from the plan, with the throughput measured."""
    rows: list[list[str]] = []

    def add(label: str, cell: Callable[[str], str]) -> None:
        rows.append([label, *(cell(arm) for arm in results.arms)])

    def planned(*path: str) -> Callable[[str], str]:
        return lambda arm: _count(_dig(results.plan, "arms", arm, *path))

    shapes = {arm: _shape(results.model(arm)) for arm in results.arms}
    for key in ("layers × width, MLP width", "memory: chapters × tokens", "chapters read"):
        add(key, lambda arm, key=key: shapes[arm].get(key, MISSING))  # type: ignore[misc]
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
    for phase in results.phases:
        add(f"optimizer steps, {phase}", planned("steps", phase))
    for phase in results.phases:
        add(
            f"measured tokens/s, {phase}",
            lambda arm, phase=phase: _count(results.tokens_per_sec(arm, phase)),  # type: ignore[misc]
        )
    header = ["", *(results.label(arm) for arm in results.arms)]
    caption = "Shape and planned cost of every arm, and the median throughput measured"
    return _table(results, "cost", caption, header, rows)


def scores(results: Results) -> Table:
    """Score of every task and arm at every boundary, with its interval and baselines."""
    rows = []
    for task in results.tasks:
        for arm in results.arms:
            found = [results.score(arm, boundary, task) for boundary in results.boundaries]
            any_score = next((score for score in found if score), None)
            baselines = [
                _percent(any_score.chance if any_score else None),
                _percent(any_score.majority if any_score else None),
            ]
            rows.append([task, results.label(arm), *(_score(score) for score in found), *baselines])
    header = ["task", "arm", *results.boundaries, "chance", "majority"]
    notes = [f"{NEAR_NOTE}."] if any(NEAR in cell for row in rows for cell in row) else []
    caption = f"Score at each boundary, % of items correct [95% Wilson interval]{_over(results)}"
    return _table(
        results, "scores", caption, header, rows, num_keys=2, notes=notes, raw=results.all_scores()
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
            f"Change over {before} → {after}: score before → after (change), %{_over(results)}"
        )
        name = f"delta-{before}-{after}"
        tables.append(_table(results, name, caption, ["arm", *results.tasks], rows, notes=notes))
    return tables


def forgetting(results: Results) -> Table:
    """How far every evaluation ended below its best earlier boundary; nothing with one phase."""
    raw = results.all_forgetting() if results.transitions else []
    found: dict[tuple[object, ...], list[float]] = {}
    for record in raw:
        value = record["forgetting"]
        assert isinstance(value, float)
        key = (record["arm"], record["unit"], record["evaluation"])
        found.setdefault(key, []).append(value)

    def cell(arm: str, unit: str, name: str) -> str:
        values = found.get((arm, unit, name))
        if not values:
            return MISSING
        mean = statistics.fmean(values)
        return _signed(100 * mean, 1) if unit == "share" else _signed(mean, 3)

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
    caption = f"Forgetting since the best earlier boundary{_over(results)}"
    notes = [
        "Tasks: best earlier score minus the last, in points. Bits per byte: last minus lowest.",
        "Negative: better at the last boundary than at any before.",
    ]
    return _table(results, "forgetting", caption, header, rows, notes=notes, raw=raw)


def bits_per_byte(results: Results) -> Table:
    """Validation loss on every source at every boundary, in bits per byte of text."""
    rows = []
    means = {arm: mean_over_seeds(results.source_matrices(arm)) for arm in results.arms}
    for column, source in enumerate(results.sources):
        for arm in results.arms:
            levels = means[arm][:, column]
            changes = transition_deltas(means[arm])[1:, column]  # not the one from the start
            cells = [_fixed(value, 3) for value in levels.tolist()]
            cells += [_signed(value, 3) for value in changes.tolist()]
            rows.append([source, results.label(arm), *cells])
    header = ["source", "arm", *results.boundaries]
    header += [f"{before} → {after}" for before, after in results.transitions]
    what = "Bits per byte of validation text (facts: unseen phrasings); lower is better"
    caption = f"{what}{_over(results)}"
    raw = results.all_bits_per_byte()
    return _table(results, "bits_per_byte", caption, header, rows, num_keys=2, raw=raw)


def losses(results: Results) -> Table:
    rows = [
        [
            results.label(arm),
            *(_fixed(results.last_loss(arm, phase), 3) for phase in results.phases),
            *(_count(results.tokens_per_sec(arm, phase)) for phase in results.phases),
        ]
        for arm in results.arms
    ]
    header = ["arm", *(f"loss, {phase}" for phase in results.phases)]
    header += [f"tokens/s, {phase}" for phase in results.phases]
    caption = "Training loss (mean over the last tenth of a phase) and throughput"
    return _table(results, "losses", caption, header, rows)


def chapters(results: Results) -> Table:
    """How evenly the chapters of every memory layer were used at the end of each phase."""
    rows = [
        [
            results.label(run.arm),
            str(run.seed),
            phase,
            str(window["layer"]),
            _fixed(window.get("load_max_over_mean"), 2),
            _fixed(window.get("entropy"), 3),
            _percent(window.get("dead_share")),
            _fixed(window.get("kl_to_uniform"), 3),
            _percent(window.get("shared_mass")),
            _fixed(window.get("balance_loss"), 3),
            _fixed(window.get("z_loss"), 3),
        ]
        for arm in results.arms
        for run in results.runs_of(arm)
        for phase in results.phases
        for window in run.last_windows(phase)
    ]
    header = ["arm", "seed", "phase", "layer", "load max/mean", "entropy"]
    header += ["dead, %", "KL, nats", "shared mass, %", "balance loss", "z-loss"]
    caption = "Chapter use in the last window of each phase, by memory layer (0-based block)"
    return _table(results, "chapters", caption, header, rows, num_keys=4)


def _table(
    results: Results,
    name: str,
    caption: str,
    header: list[str],
    rows: list[list[str]],
    *,
    num_keys: int = 1,
    notes: Sequence[str] = (),
    raw: Sequence[dict[str, object]] = (),
) -> Table:
    marks = [f"{NON_CAUSAL_NOTE}."] if results.any_non_causal else []
    return Table(name, caption, header, rows, num_keys, [*notes, *marks], list(raw))


def _over(results: Results) -> str:
    if len(results.seeds) == 1:
        return "; one seed"
    if results.num_complete_seeds() == len(results.seeds):
        return f"; mean over {len(results.seeds)} seeds"
    return "; mean over the seeds that got there"


def _score(score: Score | None) -> str:
    if score is None:
        return MISSING
    mark = f"{NEAR} " if score.near else ""
    return f"{mark}{_percent(score.value)} [{100 * score.low:.0f}, {100 * score.high:.0f}]"


def _change(before: Score | None, after: Score | None, change: float) -> str:
    if before is None:
        return MISSING
    if after is None:
        return f"{_percent(before.value)} → {MISSING}"
    mark = f"{NEAR} " if before.near else ""
    points = _signed(100 * change, 1)
    return f"{mark}{_percent(before.value)} → {_percent(after.value)} ({points})"


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
    return f"{_signed(100 * entry['relative_error'], 2)}% of {results.label(entry['target'])}"


def _dig(tree: object, *path: str) -> object:
    for key in path:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree


def _count(value: object) -> str:
    return f"{value:,.0f}" if isinstance(value, (int, float)) else MISSING


def _percent(share: float | None) -> str:
    return MISSING if share is None else f"{100 * share:.1f}"


def _fixed(value: float | None, digits: int) -> str:
    return MISSING if value is None or math.isnan(value) else f"{value:.{digits}f}"


def _signed(value: float, digits: int) -> str:
    """With a real minus sign, and no sign on what rounds to zero."""
    if math.isnan(value):
        return MISSING
    text = f"{value:+.{digits}f}".replace("-", "−")
    return text[1:] if float(text[1:]) == 0 else text
