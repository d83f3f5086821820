"""A study in a few lines of Markdown and a few figures: what MLflow shows on the study's page."""

from __future__ import annotations

import math
import statistics

from moc.report.cells import NEAR_ZERO_NOTE, items_text, marked
from moc.report.effects import forgotten
from moc.report.raw import all_forgetting
from moc.report.results import NON_CAUSAL_NOTE, Results
from moc.report.verdicts import said

GAP = "&emsp;"  # MLflow's pages leave no room between the cells of a table


def summary_text(results: Results) -> str:
    """Markdown. What may be concluded comes first: MLflow shows no more before a click."""
    num_complete = sum(results.status(*key) == "complete" for key in results.runs)
    verdicts = said(results) or [text for text in [results.caution()] if text]
    parts = [
        "\n".join(f"- {sentence}" for sentence in verdicts),
        str(results.study.get("description") or ""),
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
    """
    found: dict[str, list[float]] = {}
    last = results.boundaries[-1]
    for (arm, _), run in results.runs.items():
        record = run.evals.get(last, {})
        for task, entry in record.get("tasks", {}).items():
            found.setdefault(f"final/{task}/{arm}", []).append(entry["value"])
        for source, value in record.get("bits_per_byte", {}).items():
            found.setdefault(f"final/{source}/bits_per_byte/{arm}", []).append(value)
    for row in all_forgetting(results) if results.transitions else []:
        unit = "" if row["unit"] == "share" else f"/{row['unit']}"
        name = f"forgetting/{row['evaluation']}{unit}/{row['arm']}"
        value = row["forgetting"]
        assert isinstance(value, float)
        found.setdefault(name, []).append(value)
    means = {name: statistics.fmean(values) for name, values in found.items()}
    return {name: value for name, value in means.items() if math.isfinite(value)}


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
