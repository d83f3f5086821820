"""``report.html``: one file without links to others, made from a study's run directories."""

from __future__ import annotations

import base64
from datetime import datetime
from html import escape
from pathlib import Path

from moc.report.figures.drawing import WIDTH, Figure
from moc.report.numbers.results import NON_CAUSAL, Results, load_results
from moc.report.sections import Block, made
from moc.report.summary import said, summary_text, summary_values
from moc.store.files import write_bytes, write_json, write_text
from moc.store.rundir import ON_ANSWER, SUMMARY_TEXT, SUMMARY_VALUES

CSS = """
:root { color-scheme: light; --ink: #1c1c1c; --soft: #5b5b5b; --rule: #d9d9d9; }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: #fff;
  max-width: 72rem; margin: 2.5rem auto; padding: 0 1.25rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .3rem; }
h2 { font-size: 1.25rem; margin: 2.8rem 0 .6rem; padding-top: .8rem;
  border-top: 1px solid var(--rule); }
.facts { color: var(--soft); margin: .2rem 0; }
.callout { border-left: 4px solid #D55E00; background: #fdf3ec; padding: .6rem 1rem;
  margin: 1rem 0; }
figure { margin: 1.4rem 0; }
figcaption { font-size: .9rem; color: var(--soft); margin-bottom: .4rem; }
img { height: auto; display: block; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .86rem; font-variant-numeric: tabular-nums;
  border-top: 2px solid var(--ink); border-bottom: 2px solid var(--ink); }
th, td { padding: .28rem .6rem; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { padding-left: .2rem; white-space: normal; }
tbody th { text-align: left; font-weight: 500; min-width: 9rem; }
thead th { border-bottom: 1px solid var(--ink); font-weight: 600; white-space: normal;
  vertical-align: bottom; }
thead th.key { text-align: left; }
tr.group > * { border-top: 1px solid var(--rule); }
.note { font-size: .82rem; color: var(--soft); margin: .35rem 0 0; }
details { margin: .6rem 0; }
ul.said { padding-left: 1.2rem; }
ul.said li { margin: .3rem 0; }
details > figure { margin-top: .5rem; }
details > figure > figcaption { display: none; }
summary { cursor: pointer; font-weight: 600; }
pre { background: #f6f6f6; padding: .8rem 1rem; overflow-x: auto; font-size: .78rem;
  line-height: 1.4; }
@media print { body { margin: 0; max-width: none; } figure { break-inside: avoid; } }
"""


def build_report(study: Path | Results) -> Path:
    """Write ``report/report.html`` with ``figures/*.png``, ``tables/*.csv`` and ``tables/*.tex``
    beside it, in the folder of a study; ``study`` is that folder, or what was loaded from it.

    Works at any time: what a study has not measured yet is shown as missing.

    Raises:
        ValueError: if the folder holds no study.
    """
    results = study if isinstance(study, Results) else load_results(Path(study))
    folder = results.dir / "report"
    sections = made(results)
    for block in [block for blocks in sections.values() for block in blocks]:
        product, name = block.product, _file(block.product.name)
        if isinstance(product, Figure):
            write_bytes(folder / "figures" / f"{name}.png", product.png)
        else:
            write_text(folder / "tables" / f"{name}.csv", product.to_csv())
            write_text(folder / "tables" / f"{name}.tex", product.to_latex())
    write_text(folder / SUMMARY_TEXT, summary_text(results))
    write_json(folder / SUMMARY_VALUES, summary_values(results))
    write_text(folder / "report.html", _page(results, sections))
    return folder / "report.html"


def _file(name: str) -> str:
    """Names of arms that come from several studies have a slash."""
    return name.replace("/", "--")


def _page(results: Results, sections: dict[str, list[Block]]) -> str:
    parts = [_header(results), *_said(results)]
    for title, blocks in sections.items():
        parts.append(f"<h2>{escape(title)}</h2>\n" + "\n".join(_block(block) for block in blocks))
    parts.append(_appendix(results))
    title = escape(f"{results.study.name}: report")
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{CSS}</style></head>\n<body>\n" + "\n".join(parts) + "\n</body></html>\n"
    )


def _block(block: Block) -> str:
    if isinstance(block.product, Figure):
        return _figure(block.product)
    content = block.product.to_html()
    if block.kind == "folded":
        caption = escape(block.product.caption)
        return f"<details><summary>{caption}</summary>{content}</details>"
    return content


def _said(results: Results) -> list[str]:
    """The verdicts in plain words, before anything else."""
    sentences = said(results)
    if not sentences:
        return []
    listed = "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)
    return [f"<h2>What can be said</h2>\n<ul class=said>{listed}</ul>"]


def _header(results: Results) -> str:
    started = min((run.started for run in results.runs.values() if run.started), default=None)
    num_complete = results.num_complete_runs()
    facts = [
        f"{len(results.arms)} arms, {len(results.seeds)} seed{'s' * (len(results.seeds) != 1)}, "
        f"phases {' → '.join(results.phases)}; {num_complete} of {len(results.runs)} runs complete",
        f"started {started[:16].replace('T', ' ') if started else 'never'}; "
        f"report of {datetime.now().astimezone():%Y-%m-%d %H:%M}; "
        f"git commit {results.study.git_commit}",
    ]
    parts = [f"<h1>{escape(results.study.name)}</h1>"]
    if results.study.description:
        parts.append(f"<p>{escape(results.study.description)}</p>")
    parts += [f'<p class="facts">{escape(fact)}</p>' for fact in facts]
    caution = results.caution()
    if caution:
        parts.append(f'<p class="callout"><strong>{escape(caution)}</strong></p>')
    parts += [f'<p class="callout">{escape(line)}</p>' for line in results.damaged]
    non_causal = [results.label(arm) for arm in results.arms if not results.is_causal(arm)]
    if non_causal:
        parts.append(
            f'<p class="callout"><strong>{escape(", ".join(non_causal))}: non-causal.</strong> '
            "Rows are chosen from the whole sequence, including later tokens, in training and "
            "in validation: the losses of these arms are not those of a causal language model. "
            f"Numbers of these arms carry {NON_CAUSAL}. Answers were scored with "
            f"{_scored_on(results)}; routing on less than the whole is unlike training.</p>"
        )
    return "\n".join(parts)


def _scored_on(results: Results) -> str:
    match results.study.route_on:
        case "context":
            return "rows chosen from the context alone"
        case "full":
            return "rows chosen from the answer too"
    return f"rows chosen from the context alone, and again from the answer too ({ON_ANSWER})"


def _figure(figure: Figure) -> str:
    """SVG as a data URI: sharp at any size, and its ids cannot meet those of another figure."""
    source = f"data:image/svg+xml;base64,{base64.b64encode(figure.svg).decode()}"
    width = f"width:{100 * figure.width / WIDTH:.0f}%"
    return (
        f"<figure><figcaption>{escape(figure.caption)}</figcaption>"
        f'<img style="{width}" alt="{escape(figure.alt)}" src="{source}"></figure>'
    )


def _appendix(results: Results) -> str:
    config = escape(results.study.config)
    environment = "\n".join(f"{key}: {value}" for key, value in results.study.environment.items())
    return (
        "<h2>Configuration and environment</h2>\n"
        f"<details><summary>Resolved configuration</summary><pre>{config}</pre></details>\n"
        f"<details><summary>Environment</summary><pre>{escape(environment)}</pre></details>"
    )
