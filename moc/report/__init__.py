"""From run directories to tables, figures and one HTML file. Reads nothing else."""

from __future__ import annotations

from moc.report.html import build_report
from moc.report.results import load_results
from moc.report.sections import result_tables

__all__ = ["build_report", "load_results", "result_tables"]
