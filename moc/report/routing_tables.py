"""The tables about routing: what it sees ahead, what that is worth, and how chapters are used."""

from __future__ import annotations

from collections.abc import Iterator

from evals.measures.picks import USED_SHARE
from evals.measures.picks import overlap as overlap_of
from moc.report import looking_ahead as ahead
from moc.report.cells import (
    MISSING,
    NEAR_ZERO,
    estimated,
    fixed,
    intervals_text,
    over_text,
    percent,
    table_of,
)
from moc.report.estimates import Estimate
from moc.report.layout import Table
from moc.report.looking_ahead import Comparison
from moc.report.raw import Row, all_choices, all_losses
from moc.report.results import START, Results
from moc.report.runs import Run
from moc.store.rundir import TRAINED


def leakage(results: Results) -> Table:
    """Bits per token that non-causal arms gain by looking ahead."""
    arms = ahead.looking_ahead_arms(results)
    rows = []
    for source in ahead.names(results, "sources", arms):
        for boundary in results.phases:
            for arm in arms:
                found = ahead.entries(results, arm, boundary, "sources", source)
                rows.append(
                    [
                        source,
                        boundary,
                        results.label(arm),
                        *(fixed(ahead.mean(found, key), 3) for key in ahead.ROUTINGS),
                        *(estimated(results, ahead.part_of(found, key)) for key in ahead.PARTS),
                    ]
                )
    header = ["source", "boundary", "arm", "full", "prefix-only", "borrowed"]
    header += ["gain", "of it: look-ahead", "of it: mismatch"]
    caption = f"Bits per token gained by looking ahead {intervals_text(results, 'windows')}"
    notes = [
        "The same tokens and weights. Full: routed on the whole sequence, as trained. Prefix-only: "
        "each position routed on the text up to it. Borrowed: on that and another text's future.",
        "Gain = prefix-only − full, and the sum of two estimates. Look-ahead = borrowed − full: "
        "what knowing the future is worth. Mismatch = prefix-only − borrowed: what routing unlike "
        "that of training costs. A borrowed future that misleads moves the first up and the second "
        "down.",
        *_notes_on_texts(rows),
        *_notes_on_intervals(results, rows, "windows"),
    ]
    raw = [row for row in all_losses(results) if not row["causal"]]
    return table_of(results, "leakage", caption, header, rows, num_keys=3, notes=notes, raw=raw)


def leakage_choice(results: Results) -> Table:
    """Multiple-choice accuracy that non-causal arms gain by routing on the answer."""
    arms = ahead.looking_ahead_arms(results)
    rows = []
    for task in ahead.names(results, "tasks", arms):
        for boundary in results.phases:
            for arm in arms:
                found = ahead.entries(results, arm, boundary, "tasks", task)
                gain = estimated(results, ahead.part_of(found, "gain"), digits=1, scale=100)
                cells = [percent(ahead.mean(found, key)) for key in ("context", "full")]
                rows.append([task, boundary, results.label(arm), *cells, gain])
    header = ["task", "boundary", "arm", "routed on context", "on the answer too", "gain, points"]
    caption = (
        f"Multiple choice, % of items correct, when the answer takes part in the routing "
        f"{intervals_text(results, 'items')}"
    )
    notes = _notes_on_intervals(results, rows, "items")
    raw = all_choices(results)
    name = "leakage_choice"
    return table_of(results, name, caption, header, rows, num_keys=3, notes=notes, raw=raw)


def advantage(results: Results) -> Table:
    """Loss of every arm against the iso-FLOP baseline's, with and without looking ahead."""
    baseline = ahead.iso_flop_arm(results)
    found = ahead.comparisons(results, baseline) if baseline else []
    rows = [
        [
            entry.source,
            entry.boundary,
            results.label(entry.arm),
            _routing_text(results, entry),
            fixed(entry.loss, 3),
            "baseline" if entry.arm == baseline else estimated(results, entry.advantage),
        ]
        for entry in found
        if entry.boundary != START
    ]
    raw: list[Row] = [
        {"arm": entry.arm, "seed": seed, "causal": results.is_causal(entry.arm)}
        | {"boundary": entry.boundary, "source": entry.source, "routing": entry.routing}
        | {"bits_per_token": loss, "baseline": baseline}
        | {"advantage": entry.advantage_by_seed.get(seed)}
        for entry in found
        for seed, loss in entry.loss_by_seed.items()
    ]
    header = ["source", "boundary", "arm", "routing", "bits/token"]
    header += [f"advantage over {results.label(baseline)}" if baseline else ""]
    caption = "Loss in bits per token against the iso-FLOP baseline, on the same tokens"
    if len(results.seeds) > 1:
        caption += ", paired by seed [95% t-interval over seeds and windows]"
    caption += over_text(results)
    notes = [
        *_answers(results, baseline or "", found),
        "Positive: the arm is better. Prefix-only routing sees nothing ahead; it also pays for not "
        "having been trained that way, so what stays may be underestimated. What the arms cost is "
        "in the table on cost: equal FLOPs in one accounting are not equal in the other.",
        *_notes_on_texts(rows),
        *_notes_on_intervals(results, rows, ""),
    ]
    return table_of(results, "advantage", caption, header, rows, num_keys=4, notes=notes, raw=raw)


def chapters(results: Results) -> Table:
    """How evenly the chapters of every memory layer were used at the end of each phase."""
    windows = [
        (run, phase, window)
        for arm in results.arms
        for run in results.runs_of(arm)
        for phase in results.phases
        for window in run.last_windows(phase)
    ]
    rows = [
        [
            results.label(run.arm),
            str(run.seed),
            phase,
            str(window["layer"]),
            results.routing(run.arm),
            fixed(window.get("load_max_over_mean"), 2),
            fixed(window.get("entropy"), 3),
            percent(window.get("dead_share")),
            percent(window.get("coverage")),
            fixed(window.get("kl_to_uniform"), 3),
            percent(window.get("shared_mass")),
            fixed(window.get("balance_loss"), 3),
            fixed(window.get("z_loss"), 3),
        ]
        for run, phase, window in windows
    ]
    header = ["arm", "seed", "phase", "layer", "routing", "load max/mean", "entropy", "dead, %"]
    header += ["coverage, %", "KL, nats", "shared mass, %", "balance loss", "z-loss"]
    caption = "Chapter use in the last window of each phase, by memory layer (0-based block)"
    covered = sorted({w["coverage_tokens"] for *_, w in windows if "coverage_tokens" in w})
    if covered:
        over = " or ".join(f"{tokens:,}" for tokens in covered)
        caption += f"; coverage: share picked in one step of {over} tokens"
    notes = [
        f"Collapsed: up to {layers:.0f} of the memory layers of {results.label(run.arm)}, seed "
        f"{run.seed}, at some time in {phase}."
        for run in results.runs.values()
        for phase in results.phases
        if (layers := max(run.series(f"{phase}/router/collapsed_layers")[1], default=0)) > 0
    ]
    return table_of(results, "chapters", caption, header, rows, num_keys=4, notes=notes)


def overlap(results: Results) -> Table:
    """How far each transition moved the chapters in use, and the router."""
    rows = [
        row
        for arm in results.arms
        for run in results.runs_of(arm)
        for before, after in results.transitions
        for row in _overlap_rows(results, run, before, after)
    ]
    header = ["arm", "seed", "transition", "layer", "training: Jaccard", "training: mass"]
    header += ["same text: Jaccard", "same text: mass", "router drift"]
    caption = "Chapters before and after a transition, by memory layer (0-based block)"
    notes = [
        "Jaccard: chapters used before and after, over those used at either time (used: at least "
        f"{USED_SHARE:g} of the uniform load). Mass: what the two distributions of picks have in "
        "common. 1: nothing moved.",
        "Training: the last window of either phase, each on its own data. Same text: the earlier "
        "phase's validation text, routed by the model before and after.",
        "Router drift: change of the router's weights over the later phase, relative to before.",
    ]
    return table_of(results, "overlap", caption, header, rows, num_keys=4, notes=notes)


def _overlap_rows(results: Results, run: Run, before: str, after: str) -> Iterator[list[str]]:
    model = results.model(run.arm)
    first = model["memory"]["num_shared"] if model and model["memory"] else 0
    mixture = results.study["arms"][run.arm]["phases"][before]["mixture"]
    training = [
        {str(window["layer"]): window["load"] for window in run.last_windows(phase)}
        for phase in (before, after)
    ]
    same_text = [_picks(run, boundary, list(mixture)) for boundary in (before, after)]
    drift = (run.evals.get(after, {}).get("routing") or {}).get("drift", {})
    layers = {layer for found in (*training, *same_text, drift) for layer in found}
    for layer in sorted(layers, key=int):
        cells = []
        for loads in (training, same_text):
            picks = [load[layer] for load in loads if sum(load.get(layer, [])) > 0]
            if len(picks) == 2:
                common = overlap_of(*picks, num_shared=first)
                cells += [fixed(common["jaccard"], 3), fixed(common["mass"], 3)]
            else:
                cells += [MISSING, MISSING]
        keys = [results.label(run.arm), str(run.seed), f"{before} → {after}", layer]
        yield [*keys, *cells, fixed(drift.get(layer), 3)]


def _picks(run: Run, boundary: str, sources: list[str]) -> dict[str, list[int]]:
    """Layer -> picks per chapter over the validation text of ``sources``; empty if any lacks."""
    measured = (run.evals.get(boundary, {}).get("routing") or {}).get("sources", {})
    if not sources or not all(source in measured for source in sources):
        return {}
    loads = [measured[source]["load"] for source in sources]
    return {
        layer: [sum(picks) for picks in zip(*(load[layer] for load in loads), strict=True)]
        for layer in loads[0]
    }


def _notes_on_texts(rows: list[list[str]]) -> list[str]:
    """What the source in the first column is, where it is not plain validation text."""
    trained = sorted({row[0] for row in rows if row[0].endswith(TRAINED)})
    plain = ", ".join(name.removesuffix(TRAINED) for name in trained)
    return [
        f"{', '.join(trained)}: text that was trained on. The validation text of {plain} says the "
        "same facts in sentences never trained, so that most of its loss is wording."
    ] * bool(trained)


def _routing_text(results: Results, entry: Comparison) -> str:
    return "prefix only" if entry.routing == "prefix" else results.routing(entry.arm)


def _answers(results: Results, baseline: str, found: list[Comparison]) -> list[str]:
    """In words, after the last phase that trains on each source: what of an advantage is looking
    ahead, and what causal routing has."""
    pairs = {
        (entry.source, entry.arm, entry.routing): entry.advantage
        for entry in found
        if entry.advantage and entry.boundary == ahead.taught_by(results, entry.source)
    }
    said = []
    name = results.label(baseline) if found else baseline
    for (source, arm, routing), trained in pairs.items():
        after = f"{source} after {ahead.taught_by(results, source)}, bits per token: "
        stays = pairs.get((source, arm, "prefix"))
        if routing == "full" and stays:
            said.append(
                f"{after}{results.label(arm)} is {_better(trained)} than {name} as trained, "
                f"{_better(stays)} without looking ahead."
            )
        elif routing == "full" and results.routing(arm) != "none":
            said.append(
                f"{after}{arm}, which cannot look ahead, is {_better(trained)} than {name}."
            )
    return said


def _better(advantage: Estimate) -> str:
    words = f"{abs(advantage.value):.3f} {'better' if advantage.value >= 0 else 'worse'}"
    return f"{words} ({NEAR_ZERO})" if advantage.near_zero else words


def _notes_on_intervals(results: Results, rows: list[list[str]], unit: str) -> list[str]:
    cells = [cell for row in rows for cell in row]
    notes = []
    if any(NEAR_ZERO in cell for cell in cells):
        notes.append(f"{NEAR_ZERO}: the interval includes 0.".capitalize())
    if len(results.seeds) == 1:
        notes.append("One seed supports no claim.")
    elif unit and any(f"(1 of {len(results.seeds)} seeds)" in cell for cell in cells):
        notes.append(f"The interval of a single seed is over its {unit}.")
    return notes
