"""From run directories to tables, figures, verdicts and one HTML file; reads nothing else.

In: the folder of a study. Out: its ``report/``, and plain text for the terminal. ``numbers`` makes
typed records of what was written and computes; ``tables`` and ``figures`` show them;
``sections`` says in which order.
"""

from __future__ import annotations

from moc.report.numbers.results import load_results
from moc.report.page import build_report
from moc.report.sections import result_tables

__all__ = ["build_report", "load_results", "result_tables"]
