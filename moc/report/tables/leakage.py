"""What seeing later tokens is worth, and what stays of an advantage without it."""

from __future__ import annotations

from evals.statistics.estimates import Estimate
from moc.report.numbers import leakage as measured
from moc.report.numbers.leakage import Comparison
from moc.report.numbers.raw import Row, all_choices, all_losses
from moc.report.numbers.records import Route
from moc.report.numbers.results import START, Results
from moc.report.tables.cells import (
    NEAR_ZERO,
    estimated,
    fixed,
    intervals_text,
    over_text,
    percent,
    table_of,
)
from moc.report.tables.layout import Table
from moc.store.rundir import TRAINED

ROUTES: tuple[Route, ...] = ("full", "prefix", "counterfactual")


def leakage(results: Results) -> Table:
    """Bits per token that non-causal arms gain by routing on later tokens."""
    arms = measured.non_causal_arms(results)
    rows = []
    for source in measured.sources(results, arms):
        for boundary in results.phases:
            for arm in arms:
                found = measured.of_source(results, arm, boundary, source)
                rows.append(
                    [
                        source,
                        boundary,
                        results.label(arm),
                        *(fixed(measured.mean_loss(found, route), 3) for route in ROUTES),
                        *(estimated(results, part) for part in measured.parts_of(found)),
                    ]
                )
    header = ["source", "boundary", "arm", "full", "prefix-only", "counterfactual"]
    header += ["leakage", "of it: future", "of it: mismatch"]
    caption = (
        "Leakage: bits per token gained by routing on later tokens "
        f"{intervals_text(results, 'windows')}"
    )
    notes = [
        "The same tokens and weights. Full: routed on the whole sequence, as trained. Prefix-only: "
        "each position routed on the text up to it. Counterfactual: on that and another text's "
        "future.",
        "Leakage = prefix-only − full, and the sum of two estimates. Future = counterfactual − "
        "full: what knowing the future is worth. Mismatch = prefix-only − counterfactual: what "
        "routing unlike that of training costs. A future of another text that misleads moves the "
        "first up and the second down.",
        *_notes_on_texts(rows),
        *_notes_on_intervals(results, rows, "windows"),
    ]
    raw = [row for row in all_losses(results) if not row["causal"]]
    return table_of(results, "leakage", caption, header, rows, num_keys=3, notes=notes, raw=raw)


def leakage_choice(results: Results) -> Table:
    """Multiple-choice accuracy that non-causal arms gain by routing on the answer."""
    arms = measured.non_causal_arms(results)
    rows = []
    for task in measured.tasks(results, arms):
        for boundary in results.phases:
            for arm in arms:
                found = measured.of_task(results, arm, boundary, task)
                leakage = measured.accuracy_leakage(found)
                cells = [
                    percent(measured.mean_accuracy(found, "context")),
                    percent(measured.mean_accuracy(found, "full")),
                    estimated(results, leakage, digits=1, scale=100),
                ]
                rows.append([task, boundary, results.label(arm), *cells])
    header = [
        "task",
        "boundary",
        "arm",
        "routed on context",
        "on the answer too",
        "leakage, points",
    ]
    caption = (
        f"Leakage in multiple choice: % of items correct when the answer takes part in the routing "
        f"{intervals_text(results, 'items')}"
    )
    notes = _notes_on_intervals(results, rows, "items")
    raw = all_choices(results)
    name = "leakage_choice"
    return table_of(results, name, caption, header, rows, num_keys=3, notes=notes, raw=raw)


def advantage(results: Results) -> Table:
    """Loss of every arm against the iso-FLOP baseline's, as trained and on the prefix alone."""
    baseline = results.iso_flop_arm
    found = measured.comparisons(results, baseline) if baseline else []
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
        | {"boundary": entry.boundary, "source": entry.source, "routing": entry.route}
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
        "Positive: the arm is better. Prefix-only routing sees no later tokens; it also pays for "
        "not having been trained that way, so what stays may be underestimated. What the arms "
        "cost is in the table on cost: equal FLOPs in one accounting are not equal in the other.",
        *_notes_on_texts(rows),
        *_notes_on_intervals(results, rows, ""),
    ]
    return table_of(results, "advantage", caption, header, rows, num_keys=4, notes=notes, raw=raw)


def _notes_on_texts(rows: list[list[str]]) -> list[str]:
    """What the source in the first column is, where it is not plain validation text."""
    trained = sorted({row[0] for row in rows if row[0].endswith(TRAINED)})
    plain = ", ".join(name.removesuffix(TRAINED) for name in trained)
    return [
        f"{', '.join(trained)}: text that was trained on. The validation text of {plain} says the "
        "same facts in sentences never trained, so that most of its loss is wording."
    ] * bool(trained)


def _routing_text(results: Results, entry: Comparison) -> str:
    return "prefix only" if entry.route == "prefix" else results.routing(entry.arm)


def _answers(results: Results, baseline: str, found: list[Comparison]) -> list[str]:
    """In words, after the last phase that trains on each source: what of an advantage is
    leakage, and what causal routing has."""
    pairs = {
        (entry.source, entry.arm, entry.route): entry.advantage
        for entry in found
        if entry.advantage and entry.boundary == results.study.taught_last(entry.source)
    }
    said = []
    name = results.label(baseline) if found else baseline
    for (source, arm, route), trained in pairs.items():
        after = f"{source} after {results.study.taught_last(source)}, bits per token: "
        stays = pairs.get((source, arm, "prefix"))
        if route == "full" and stays:
            said.append(
                f"{after}{results.label(arm)} is {_better(trained)} than {name} as trained, "
                f"{_better(stays)} without leakage."
            )
        elif route == "full" and results.routing(arm) != "none":
            said.append(f"{after}{arm}, which is causal, is {_better(trained)} than {name}.")
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
