"""A study in words: its verdicts in sentences, and the few lines that MLflow shows of it."""

from __future__ import annotations

import math
import statistics

from evals.statistics.estimates import Estimate
from evals.statistics.power import POWER
from moc.report.numbers.assay import UNSEEN, bank_verdicts, controls
from moc.report.numbers.effects import forgotten
from moc.report.numbers.raw import all_forgetting
from moc.report.numbers.results import NON_CAUSAL_NOTE, Results
from moc.report.numbers.stored import known_sources, stored
from moc.report.numbers.verdicts import LESS, MORE, Verdict, bases, outcomes, verdicts
from moc.report.tables.cells import (
    MISSING,
    NEAR_ZERO_NOTE,
    interval,
    items_text,
    marked,
    plain,
    probability,
    signed,
)

GAP = "&emsp;"  # MLflow's pages leave no room between the cells of a table


def said(results: Results) -> list[str]:
    """The verdicts in sentences; empty where there was nothing to compare."""
    found = verdicts(results)
    sentences = [*_assay(results), *_banks(results)]
    sentences += [text for base in bases(results) for text in _against(results, base, found)]
    if sentences and (caution := results.caution()):
        return [caution, *sentences]
    return sentences


def _assay(results: Results) -> list[str]:
    """Whether the study could have seen a memory store; empty without an assay."""
    found = controls(results)
    if not found:
        return []
    failed = [control for control in found if not control.passed]
    if not failed:
        arms = ", ".join(f"{control.arm} ({_kilobits(control.marginal)})" for control in found)
        return [f"Assay passed: bits held beyond the twin with a frozen bank, {arms}."]
    why = "; ".join(
        f"{control.role} control {control.arm} "
        + (
            "was not measured"
            if control.marginal is None
            else f"{'stores' if control.stores else 'does not store'} more than its twin "
            f"({_kilobits(control.marginal)})"
        )
        for control in failed
    )
    return [f"Assay failed, {UNSEEN}: {why}."]


def _banks(results: Results) -> list[str]:
    """What every bank stores, of studies with an assay."""
    told = [
        f"{results.label(entry.arm)} {entry.words}"
        + (f" ({_kilobits(entry.bits)})" if entry.bits else "")
        for entry in bank_verdicts(results)
    ]
    return [f"Of bits beyond the twin with a frozen bank: {'; '.join(told)}."] if told else []


def _kilobits(estimate: Estimate | None) -> str:
    if estimate is None:
        return MISSING
    around = interval(estimate, digits=1, scale=1e-3)
    return f"{signed(1e-3 * estimate.value, 1)}{around} kbit"


def summary_text(results: Results) -> str:
    """Markdown. What may be concluded comes first: MLflow shows no more before a click."""
    num_complete = results.num_complete_runs()
    sentences = said(results) or [text for text in [results.caution()] if text]
    parts = [
        "\n".join(f"- {sentence}" for sentence in sentences),
        results.study.description,
        f"{len(results.arms)} arms, seeds {', '.join(map(str, results.seeds))}, phases "
        f"{' → '.join(results.phases)}; {num_complete} of {len(results.runs)} runs complete.",
        _forgetting(results),
        f"{NON_CAUSAL_NOTE}." if results.any_non_causal else "",
        "All tables and figures: `report.html` under Artifacts. The step axis of every curve "
        "counts training tokens.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def summary_values(results: Results) -> dict[str, float]:
    """Means over seeds, by metric: what each arm scored at the last boundary, as a share
    ``final/<task>/<arm>`` and ``final/<source>/bits_per_byte/<arm>``; ``forgetting/...`` likewise.
    ``stored/<source>/<arm>``: bits held when they had been taught; ``stored/beyond_twin/<arm>``.
    """
    found: dict[str, list[float]] = {}
    last = results.boundaries[-1]
    for (arm, _), run in results.runs.items():
        for task, score in run.at(last).tasks.items():
            found.setdefault(f"final/{task}/{arm}", []).append(score.value)
        for source, value in run.at(last).bits_per_byte.items():
            found.setdefault(f"final/{source}/bits_per_byte/{arm}", []).append(value)
    for row in all_forgetting(results) if results.transitions else []:
        unit = "" if row["unit"] == "share" else f"/{row['unit']}"
        name = f"forgetting/{row['evaluation']}{unit}/{row['arm']}"
        lost = row["forgetting"]
        assert isinstance(lost, float)
        found.setdefault(name, []).append(lost)
    for source in known_sources(results):
        for arm in results.arms:
            if held := stored(results, arm, str(results.taught(source)), source):
                found[f"stored/{source}/{arm}"] = [held.value]
    for entry in bank_verdicts(results):
        if entry.bits:
            found[f"stored/beyond_twin/{entry.arm}"] = [entry.bits.value]
    if checked := controls(results):
        found["assay/passed"] = [float(all(control.passed for control in checked))]
    means = {name: statistics.fmean(values) for name, values in found.items()}
    return {name: value for name, value in means.items() if math.isfinite(value)}


def _against(results: Results, base: str, found: list[Verdict]) -> list[str]:
    """How the comparisons with ``base`` came out, and those that say something."""
    mine = [entry for entry in found if entry.base == base]
    if not mine:
        return []
    name = results.label(base)
    pairs = "comparison" if len(mine) == 1 else "comparisons"
    summary = f"Against {name}, {len(mine)} {pairs} of an arm on a task: {outcomes(mine)}."
    if (num_pairs := len({(entry.arm, entry.base) for entry in found})) > 1:
        summary += f" p is adjusted over tasks, not over the {num_pairs} pairs of arms."
    claims = []
    for arm in dict.fromkeys(entry.arm for entry in mine):
        for words in (LESS, MORE):
            tasks = [e for e in mine if (e.arm, e.words) == (arm, words)]
            on = ", ".join(f"{e.task} ({_amount(e)})" for e in tasks)
            claims += [f"{results.label(arm)} {words} than {name}: {on}."] * bool(tasks)
    unseen = [entry.detectable for entry in mine if math.isfinite(entry.detectable)]
    if not claims and unseen:
        units = dict.fromkeys(entry.unit for entry in mine if math.isfinite(entry.detectable))
        amounts = " or ".join(f"{_median_seen(mine, unit):.1f} {unit}" for unit in units)
        summary += (
            f" No arm can be told from {name} by what it forgets. That is no proof of equality: "
            f"in half of these comparisons only a difference of {amounts} or more would "
            f"have been seen with {POWER:.0%} power."
        )
    return [summary, *claims]


def _median_seen(found: list[Verdict], unit: str) -> float:
    seen = [e.scale * e.detectable for e in found if e.unit == unit and math.isfinite(e.detectable)]
    return statistics.median(seen)


def _amount(entry: Verdict) -> str:
    difference = signed(entry.scale * entry.difference.value, 1)
    around = interval(entry.difference, digits=1, scale=entry.scale)
    stake = ""
    if entry.at_stake is not None:
        stake = f", {plain(entry.scale * entry.at_stake.value, 1)} at stake"
    p = probability(entry.adjusted_p)
    return f"{difference} {entry.unit}{around}{stake}, adjusted p {p}"


def _forgetting(results: Results) -> str:
    """A table of the tasks taught before the last phase; empty if there are none."""
    tasks = results.earlier_tasks
    if not tasks:
        return ""
    lines = [["forgotten, points", *tasks]]
    for arm in results.arms:
        found = [forgotten(results, arm, task) for task in tasks]
        lines.append([results.label(arm), *(marked(results, estimate) for estimate in found)])
    note = f"Best earlier score minus the last {items_text(results)}. {NEAR_ZERO_NOTE}"
    head, *rows = [f"| {' | '.join(f'{cell}{GAP}' for cell in line)} |" for line in lines]
    return "\n".join([head, "| --- " * len(lines[0]) + "|", *rows]) + f"\n\n{note}"
