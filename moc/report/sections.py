"""What a report holds and in which order; the page and the terminal both follow it.

A table or a figure is one function and one line here.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from moc.report.figures import controls as control_figures
from moc.report.figures import course as course_figures
from moc.report.figures import knowledge as knowledge_figures
from moc.report.figures import leakage as leakage_figures
from moc.report.figures import losses as loss_figures
from moc.report.figures import matrix as matrix_figures
from moc.report.figures import probes as probe_figures
from moc.report.figures import scaling as scaling_figure
from moc.report.figures import scores as score_figures
from moc.report.figures import tuning as tuning_figures
from moc.report.figures import use as use_figures
from moc.report.figures.drawing import Figure, style
from moc.report.numbers.results import Results, load_results
from moc.report.summary import said
from moc.report.tables import controls as control_tables
from moc.report.tables import cost as cost_table
from moc.report.tables import forgetting as forgetting_tables
from moc.report.tables import knowledge as knowledge_tables
from moc.report.tables import leakage as leakage_tables
from moc.report.tables import losses as loss_tables
from moc.report.tables import probes as probe_tables
from moc.report.tables import scaling as scaling_tables
from moc.report.tables import scores as score_tables
from moc.report.tables import spikes as spike_tables
from moc.report.tables import tuning as tuning_tables
from moc.report.tables import use as use_tables
from moc.report.tables import verdicts as verdict_tables
from moc.report.tables.layout import TEXT_WIDTH, Table

Kind = Literal["table", "folded", "figure"]  # folded: a table behind a click
Product = Table | Figure
Make = Callable[[Results], Product | Sequence[Product] | None]

SECTIONS: dict[str, list[tuple[Kind, Make]]] = {
    "Could this study have seen it": [
        ("table", knowledge_tables.assay),
    ],
    "Knowledge stored": [
        ("figure", knowledge_figures.capacity),
        ("figure", knowledge_figures.learning),
        ("figure", knowledge_figures.knowledge),
        ("table", knowledge_tables.banks),
        ("table", knowledge_tables.knowledge),
        ("folded", knowledge_tables.attributes),
    ],
    "Who forgets less": [
        ("table", verdict_tables.differences),
        ("figure", course_figures.learned_forgotten),
    ],
    "What was compared, and at what cost": [
        ("table", cost_table.cost),
        ("folded", score_tables.status),
    ],
    "How the arms were tuned": [
        ("figure", tuning_figures.sensitivity),
        ("table", tuning_tables.tuned),
    ],
    "Loss over training compute": [
        ("figure", scaling_figure.scaling),
        ("table", scaling_tables.scaling),
        ("folded", scaling_tables.scaling_points),
    ],
    "Forgetting and transfer": [
        ("table", forgetting_tables.forgetting),
        ("figure", matrix_figures.churn),
        ("folded", forgetting_tables.churn),
    ],
    "Scores at each boundary": [
        ("figure", matrix_figures.r_matrix),
        ("figure", score_figures.scores),
        ("folded", score_tables.scores),
        ("folded", score_tables.r_matrices),
    ],
    "Scores along training": [
        ("figure", course_figures.trajectories),
    ],
    "What changed over each transition": [
        ("folded", score_tables.deltas),
    ],
    "What choice tasks were answered": [
        ("figure", matrix_figures.predictions),
    ],
    "Loss on earlier phases' data": [
        ("table", loss_tables.earlier_loss),
        ("figure", loss_figures.bits_per_byte),
        ("folded", loss_tables.bits_per_byte),
    ],
    "How much of a score lives in the bank": [
        ("figure", control_figures.controls),
        ("table", control_tables.controls),
        ("folded", control_tables.earlier_controls),
    ],
    "Forgotten, or out of reach": [
        ("figure", probe_figures.probes),
        ("table", probe_tables.savings),
    ],
    "Leakage": [
        ("figure", leakage_figures.leakage),
        ("table", leakage_tables.leakage),
        ("table", leakage_tables.leakage_choice),
    ],
    "Loss against the iso-FLOP baseline": [
        ("table", leakage_tables.advantage),
    ],
    "Training loss": [
        ("figure", loss_figures.losses),
        ("table", loss_tables.losses),
        ("table", spike_tables.spiked),
    ],
    "Memory use": [
        ("figure", use_figures.memory_use),
        ("folded", use_tables.memory_use),
        ("folded", use_tables.overlap),
    ],
}

PRINTED: list[Make] = [  # in the terminal, before the verdicts in words
    loss_tables.losses,
    spike_tables.spiked,
    leakage_tables.leakage,
    leakage_tables.leakage_choice,
    loss_tables.bits_per_byte,
    score_tables.scores,
    forgetting_tables.forgetting,
    knowledge_tables.assay,
    knowledge_tables.banks,
    knowledge_tables.knowledge,
    verdict_tables.differences,
]


@dataclass(frozen=True)
class Block:
    """One table or figure in its place."""

    kind: Kind
    product: Product


def made(results: Results) -> dict[str, list[Block]]:
    """Section -> its blocks; sections that ``results`` have nothing for are left out."""
    with style():
        found = {
            title: [
                Block(kind, product) for kind, make in entries for product in _all(make, results)
            ]
            for title, entries in SECTIONS.items()
        }
    return {title: blocks for title, blocks in found.items() if blocks}


def all_tables(results: Results) -> dict[str, Table]:
    """Every table that ``results`` have rows for, by name."""
    entries = [entry for section in SECTIONS.values() for entry in section]
    makers = [make for kind, make in entries if kind != "figure"]
    found = [product for make in makers for product in _all(make, results)]
    return {table.name: table for table in found if isinstance(table, Table)}


def result_tables(study: Path | Results) -> str:
    """Losses, scores, forgetting and verdicts of a study (its folder, or what was loaded from it)
    as plain text, at most 100 columns wide. The page has more.

    Raises:
        ValueError: if the folder holds no study.
    """
    results = study if isinstance(study, Results) else load_results(Path(study))
    found = [product for make in PRINTED for product in _all(make, results)]
    parts = [table.to_text() for table in found if isinstance(table, Table)]
    closing = said(results) or [text for text in [results.caution()] if text]
    parts += ["\n".join(textwrap.fill(text, TEXT_WIDTH) for text in closing)] if closing else []
    parts += ["\n".join(results.damaged)] if results.damaged else []
    return "\n\n".join(parts) + "\n"


def _all(make: Make, results: Results) -> list[Product]:
    """What ``make`` has to show: a figure, or a table with rows, or several."""
    product = make(results)
    products = list(product) if isinstance(product, Sequence) else [product]
    return [p for p in products if isinstance(p, Figure) or (p is not None and p.rows)]
