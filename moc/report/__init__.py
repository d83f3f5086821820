"""From run directories to tables, figures and one HTML file. Reads nothing else."""

from __future__ import annotations

from moc.report.html import build_report
from moc.report.tables import result_tables

__all__ = ["build_report", "result_tables"]
