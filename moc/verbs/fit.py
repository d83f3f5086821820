"""``moc fit``: the curves of a study's ladder, and what a baseline would need for an arm's loss."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from moc.errors import ConfigError, nearest


def add_fit(verbs: argparse._SubParsersAction[Any]) -> None:
    """The verb's place on the command line."""
    verb = verbs.add_parser("fit", help="curves of a ladder, and the compute to match a loss")
    verb.add_argument("path", type=Path, help="a study YAML, its folder, or one of its runs")
    verb.add_argument("--source", help="whose validation text; default: the phase's first")
    verb.add_argument("--phase", help="after which phase; default: the last")
    verb.add_argument("--baseline", metavar="ARM", help="without its size; default: of equal FLOPs")
    verb.set_defaults(run=_run)


def fit_study(
    path: Path, *, source: str | None = None, phase: str | None = None, baseline: str | None = None
) -> tuple[str, Path]:
    """The fits of the study that ``path`` belongs to, as text, and the figure's file; with tables
    as CSV beside it, in the study's ``report/``.

    Raises:
        ConfigError: for what is no study, has no ladder or nothing measured; unknown names.
    """
    from moc.report import load_results
    from moc.report.figures.drawing import style
    from moc.report.figures.scaling import scaling as figure_of
    from moc.report.numbers.scaling import asked, families
    from moc.report.tables.scaling import scaling, scaling_points
    from moc.store.files import write_bytes, write_text
    from moc.store.find import study_dir_of

    folder = study_dir_of(path)
    results = load_results(folder)
    if not families(results):
        raise ConfigError(
            f"{folder}: no arm of this study has a size that costs more than another; give it a "
            "'ladder:' section"
        )
    known = {"source": results.sources, "phase": results.phases, "baseline": [*families(results)]}
    chosen = {"source": source, "phase": phase, "baseline": baseline}
    for option, value in chosen.items() if results.sources else ():
        if value is not None and value not in known[option]:
            raise ConfigError(f"--{option}: no {value!r}; {nearest(value, known[option])}")
    question = asked(results, source=source, phase=phase, baseline=baseline)
    if question is None:
        raise ConfigError(f"{folder}: no boundary of this study has been evaluated yet")
    tables = [scaling(results, question), scaling_points(results, question)]
    with style():
        figure = figure_of(results, question)
    if figure is None:
        raise ConfigError(f"{folder}: no size of this study has ended phase {question.phase} yet")
    report = folder / "report"
    for table in tables:
        if table is not None:
            write_text(report / "tables" / f"{table.name}.csv", table.to_csv())
    file = report / "figures" / f"{figure.name}.png"
    write_bytes(file, figure.png)
    return "\n\n".join(table.to_text() for table in tables if table is not None), file


def _run(arguments: argparse.Namespace) -> int:
    text, figure = fit_study(
        arguments.path,
        source=arguments.source,
        phase=arguments.phase,
        baseline=arguments.baseline,
    )
    print(f"{text}\n\nfigure:  {figure}")
    return 0
