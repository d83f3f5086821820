"""How evenly the rows of banks were used, how flat a read is, and how far both moved."""

from __future__ import annotations

from evals.measures.overlap import USED_SHARE
from moc.report.numbers.results import Results
from moc.report.numbers.use import Overlap, collapsed, moved
from moc.report.tables.cells import MISSING, fixed, percent, table_of
from moc.report.tables.layout import Table

ROWS = "A row of a bank is a chapter, or a value of product keys."


def memory_use(results: Results) -> Table:
    """How evenly the rows that each memory layer reads were used at the end of each phase."""
    windows = [
        (run, phase, window)
        for arm in results.arms
        for run in results.runs_of(arm)
        for phase in results.phases
        for window in run.last_windows(phase)
    ]
    rows = [
        [
            results.label(run.arm),
            str(run.seed),
            phase,
            str(window.layer),
            results.routing(run.arm),
            fixed(window.load_max_over_mean, 2),
            fixed(window.entropy, 3),
            _number(window.effective_rows),
            percent(window.dead_share),
            percent(window.coverage),
            fixed(window.kl_to_uniform, 3),
            _number(window.effective_read),
            _most_mixed(results, run.arm),
            percent(window.shared_mass),
            fixed(window.balance_loss, 3),
            fixed(window.z_loss, 3),
        ]
        for run, phase, window in windows
    ]
    header = ["arm", "seed", "phase", "layer", "routing", "load max/mean", "entropy"]
    header += ["effective rows", "dead, %", "coverage, %", "KL, nats", "effective read", "of most"]
    header += ["shared mass, %", "balance loss", "z-loss"]
    caption = "Use of rows in the last window of each phase, by memory layer (0-based block)"
    covered = sorted({w.coverage_tokens for *_, w in windows if w.coverage_tokens})
    if covered:
        over = " or ".join(f"{tokens:,}" for tokens in covered)
        caption += f"; coverage: share picked in one step of {over} tokens"
    notes = [
        f"{ROWS} Effective rows: so many, used evenly, would have the same entropy. Effective "
        "read: tokens of chapters, or values of product keys, that a position really mixes, by the "
        "entropy of its weights; of most: all that it reads."
    ]
    notes += [
        f"Collapsed: up to {layers:.0f} of the memory layers of {results.label(run.arm)}, seed "
        f"{run.seed}, at some time in {phase}."
        for run, phase, layers in collapsed(results)
    ]
    return table_of(results, "memory_use", caption, header, rows, num_keys=4, notes=notes)


def overlap(results: Results) -> Table:
    """How far each transition moved the rows in use, and what addresses them."""
    rows = [
        [
            results.label(entry.run.arm),
            str(entry.run.seed),
            f"{entry.before} → {entry.after}",
            entry.layer,
            *_cells(entry.training),
            *_cells(entry.same_text),
            fixed(entry.drift, 3),
        ]
        for entry in moved(results)
    ]
    header = ["arm", "seed", "transition", "layer", "training: Jaccard", "training: mass"]
    header += ["same text: Jaccard", "same text: mass", "address drift"]
    caption = "Rows before and after a transition, by memory layer (0-based block)"
    notes = [
        f"{ROWS} Jaccard: rows used before and after, over those used at either time (used: at "
        f"least {USED_SHARE:g} of the uniform load). Mass: what two distributions of picks have "
        "in common. 1: nothing moved.",
        "Training: the last window of either phase, each on its own data. Same text: the earlier "
        "phase's validation text, read by the model before and after.",
        "Address drift: change of the weights of router or keys over the later phase, relative to "
        "before.",
    ]
    return table_of(results, "overlap", caption, header, rows, num_keys=4, notes=notes)


def _number(value: float | None) -> str:
    return MISSING if value is None else f"{value:,.1f}"


def _most_mixed(results: Results, arm: str) -> str:
    shape = results.study.arms[arm].shape
    most = shape.memory.most_mixed if shape and shape.memory else None
    return MISSING if most is None else f"{most:,}"


def _cells(found: Overlap | None) -> list[str]:
    return [fixed(found.jaccard, 3), fixed(found.mass, 3)] if found else [MISSING, MISSING]
