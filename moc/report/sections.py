"""What a report holds and in which order; the page and the terminal both follow it."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from pathlib import Path

from moc.report import (
    control_tables,
    cost_table,
    forgetting_tables,
    knowledge,
    loss_tables,
    routing_tables,
    tables,
    verdicts,
)
from moc.report.layout import TEXT_WIDTH, Table
from moc.report.results import Results, load_results


@dataclass(frozen=True)
class Section:
    """Blocks are tables by name, ``figure:<name>``, and ``fold:<name>``: a table behind a click."""

    title: str
    blocks: list[str]


def all_tables(results: Results) -> dict[str, Table]:
    """Every table that ``results`` have rows for, by name."""
    made = [
        *verdicts.differences(results),
        cost_table.cost(results),
        tables.status(results),
        forgetting_tables.forgetting(results),
        forgetting_tables.churn(results),
        tables.scores(results),
        *tables.r_matrices(results),
        *tables.deltas(results),
        loss_tables.earlier_loss(results),
        loss_tables.bits_per_byte(results),
        knowledge.stored(results),
        *control_tables.controls(results),
        knowledge.savings_table(results),
        routing_tables.leakage(results),
        routing_tables.leakage_choice(results),
        routing_tables.advantage(results),
        loss_tables.losses(results),
        routing_tables.chapters(results),
        routing_tables.overlap(results),
    ]
    return {table.name: table for table in made if table.rows}


def result_tables(study: Path | Results) -> str:
    """Losses, scores, forgetting and verdicts of a study (its folder, or what was loaded from it)
    as plain text, at most 100 columns wide. The page has more.

    Raises:
        ValueError: if the folder holds no study.
    """
    results = study if isinstance(study, Results) else load_results(Path(study))
    made = [
        loss_tables.losses(results),
        routing_tables.leakage(results),
        routing_tables.leakage_choice(results),
        loss_tables.bits_per_byte(results),
        tables.scores(results),
        forgetting_tables.forgetting(results),
        *verdicts.differences(results),
    ]
    parts = [table.to_text() for table in made if table.rows]
    closing = verdicts.said(results) or [text for text in [results.caution()] if text]
    parts += ["\n".join(textwrap.fill(text, TEXT_WIDTH) for text in closing)] if closing else []
    return "\n\n".join(parts) + "\n"


def sections(results: Results, tables: list[str], figures: list[str]) -> list[Section]:
    """The page's, in order; a block that there is no such table or figure for is left out."""

    def named(start: str, names: list[str]) -> list[str]:
        return [name for name in names if name.startswith(start)]

    def folded(names: list[str]) -> list[str]:
        return [f"fold:{name}" for name in names]

    controls = named("controls-", tables)
    probes, chapters = (
        [f"figure:{name}" for name in named(start, figures)] for start in ("probe_", "chapters_")
    )
    planned = [
        Section("Who forgets less", [*named("differences-", tables), "figure:learned_forgotten"]),
        Section("What was compared, and at what cost", ["cost", "fold:status"]),
        Section("Forgetting and transfer", ["forgetting", "figure:churn", "fold:churn"]),
        Section(
            "Scores at each boundary",
            ["figure:r_matrix", "figure:scores", "fold:scores", *folded(named("R-", tables))],
        ),
        Section("Scores along training", ["figure:trajectories"]),
        Section("What changed over each transition", folded(named("delta-", tables))),
        Section("What choice tasks were answered", ["figure:predictions"]),
        Section(
            "Loss on earlier phases' data",
            ["earlier_loss", "figure:bits_per_byte", "fold:bits_per_byte"],
        ),
        Section("Knowledge stored", ["knowledge"]),
        Section(
            "How much of a score lives in the bank",
            ["figure:controls", *controls[-1:], *folded(controls[:-1])],
        ),
        Section("Forgotten, or out of reach", [*probes, "savings"]),
        Section("Looking ahead", ["figure:leakage", "leakage", "leakage_choice"]),
        Section("Loss against the iso-FLOP baseline", ["advantage"]),
        Section("Training loss", ["figure:losses", "losses"]),
        Section("Chapter use", [*chapters, "fold:chapters", "fold:overlap"]),
    ]
    known = {*tables, *folded(tables), *(f"figure:{name}" for name in figures)}
    kept = [Section(s.title, [block for block in s.blocks if block in known]) for s in planned]
    return [section for section in kept if section.blocks]
