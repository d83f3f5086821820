"""A table and its forms: HTML, CSV, LaTeX and plain text."""

from __future__ import annotations

import csv
import io
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field
from html import escape

from moc.report.tables import latex

TEXT_WIDTH = 100  # columns of a terminal


@dataclass
class Table:
    """Cells are text already; the first ``num_keys`` columns name the row. ``raw`` is what the CSV
    file holds instead of the cells: one dict a line, unrounded and per seed."""

    name: str  # of its files
    caption: str
    header: list[str]
    rows: list[list[str]]
    num_keys: int = 1
    notes: list[str] = field(default_factory=list)
    raw: list[dict[str, object]] = field(default_factory=list)

    def to_csv(self) -> str:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        if self.raw:
            writer.writerow(self.raw[0])
            writer.writerows(record.values() for record in self.raw)
        else:
            writer.writerows([self.header, *self.rows])
        return text.getvalue()

    def to_html(self) -> str:
        head = "".join(
            f"<th{' class=key' if index < self.num_keys else ''}>{escape(cell)}</th>"
            for index, cell in enumerate(self.header)
        )
        body = []
        for starts, row in self._grouped():
            cells = [f"<th>{escape(cell)}</th>" for cell in row[: self.num_keys]]
            cells += [f"<td>{escape(cell)}</td>" for cell in row[self.num_keys :]]
            body.append(f"<tr{' class=group' * starts}>{''.join(cells)}</tr>")
        notes = "".join(f'<p class="note">{escape(note)}</p>' for note in self.notes)
        return (
            f"<figure><figcaption>{escape(self.caption)}</figcaption><div class=wide><table>"
            f"<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
            f"{notes}</figure>"
        )

    def to_latex(self) -> str:
        """A ``table`` for a document with the packages booktabs and graphicx."""
        columns = "l" * self.num_keys + "r" * (len(self.header) - self.num_keys)
        rows: list[str] = []
        for starts, row in self._grouped():
            rows += [r"\addlinespace"] * starts + [latex.row(row)]
        lines = [
            r"% \usepackage{booktabs,graphicx}",
            r"\begin{table}",
            r"\centering\small",
            rf"\caption{{{latex.text(self.caption)}}}",
            rf"\label{{tab:{latex.label(self.name)}}}",
            r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            latex.row(self.header),
            r"\midrule",
            *rows,
            r"\bottomrule",
            r"\end{tabular}}",
            *(rf"\par\smallskip\footnotesize\raggedright {latex.text(n)}" for n in self.notes),
            r"\end{table}",
        ]
        return "\n".join(lines) + "\n"

    def to_text(self, width: int = TEXT_WIDTH) -> str:
        """Aligned columns; those that do not fit in ``width`` follow below, keys repeated."""
        sizes = [
            max(len(row[i]) for row in [self.header, *self.rows]) for i in range(len(self.header))
        ]
        keys = list(range(self.num_keys))
        blocks, columns = [], keys[:]
        for index in range(self.num_keys, len(self.header)):
            used = sum(sizes[i] + 2 for i in [*columns, index]) - 2
            if used > width and len(columns) > len(keys):
                blocks.append(columns)
                columns = keys[:]
            columns.append(index)
        blocks.append(columns)
        lines = textwrap.wrap(self.caption, width)
        for columns in blocks:
            for row in [self.header, *self.rows]:
                cells = [
                    row[i].ljust(sizes[i]) if i < self.num_keys else row[i].rjust(sizes[i])
                    for i in columns
                ]
                lines.append("  ".join(cells).rstrip())
                if row is self.header:
                    lines.append("-" * (sum(sizes[i] + 2 for i in columns) - 2))
            lines.append("")
        notes = [line for note in self.notes for line in textwrap.wrap(note, width)]
        return "\n".join([*lines[:-1], *notes])

    def _grouped(self) -> Iterator[tuple[bool, list[str]]]:
        """Every row, with the keys that it shares with the one above left out, but for the last;
        and whether a new group of rows starts with it."""
        above: list[str] = []
        for row in self.rows:
            keys = [
                "" if place < self.num_keys - 1 and row[: place + 1] == above[: place + 1] else key
                for place, key in enumerate(row[: self.num_keys])
            ]
            starts = bool(above) and self.num_keys > 1 and row[:1] != above[:1]
            yield starts, [*keys, *row[self.num_keys :]]
            above = row
