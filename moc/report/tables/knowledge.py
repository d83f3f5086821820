"""What every arm knows of people and records, in bits; and how much of that its bank stores."""

from __future__ import annotations

from evals.statistics.estimates import Estimate
from moc.report.numbers import assay as numbers
from moc.report.numbers.raw import Row
from moc.report.numbers.results import Results
from moc.report.numbers.stored import (
    in_bank,
    known_sources,
    learns,
    lost,
    per_parameter,
    right,
    stored,
    table_at,
)
from moc.report.tables.cells import (
    MISSING,
    NEAR_ZERO_NOTE,
    count,
    interval,
    marked,
    over_text,
    percent,
    plain,
    probability,
    table_of,
)
from moc.report.tables.layout import Table

_OVER = " [95% interval over seeds and records]"
_METHOD = (
    "Per attribute: the bits that a value takes to know minus those that the right one takes to "
    "say, on average and not less than 0, where it stands in a sentence as trained; summed over "
    "attributes, times the people or records there are (arXiv 2404.05405)."
)
_TWIN = (
    "Its twin is the same arm with the bank frozen at its initial values: keys, gates and maps "
    "store too, so a bank stores what its arm holds beyond its twin."
)


def assay(results: Results) -> Table:
    """Could this study have seen a memory store?"""
    rows: list[list[str]] = []
    raw: list[Row] = []
    for control in numbers.controls(results):
        where = MISSING if control.source is None else f"{control.source} after {control.boundary}"
        bits = control.marginal
        verdict = "passed" if control.passed else f"failed: {numbers.UNSEEN}"
        p = MISSING if bits is None else probability(bits.p)
        rows.append([control.role, control.arm, where, _bits(results, bits), p, verdict])
        raw.append(
            {"role": control.role, "arm": control.arm, "source": control.source}
            | {"boundary": control.boundary, **_numbers("beyond_twin", bits)}
            | {"p": bits and bits.p, "passed": control.passed}
        )
    caption = f"Assay: bits held beyond the twin, kbit{_OVER}{over_text(results)}"
    header = ["control", "arm", "of", "beyond its twin", "p", "verdict"]
    notes = [
        "The positive control must store more than its twin, at p < 0.05, and no negative one may: "
        "else the study could not have seen a memory store, and gives no verdict about memory.",
        _TWIN,
        NEAR_ZERO_NOTE,
    ]
    return table_of(results, "assay", caption, header, rows, num_keys=2, notes=notes, raw=raw)


def banks(results: Results) -> Table:
    """What every bank stores of what its arm learns first."""
    rows: list[list[str]] = []
    raw: list[Row] = []
    for entry in numbers.bank_verdicts(results):
        arm, where = entry.arm, (entry.boundary, entry.source)
        twin = str(results.study.twin(arm))
        share = per_parameter(results, arm, entry.bits)
        gone = in_bank(results, arm, *where)
        rows.append(
            [f"{entry.source} after {entry.boundary}", results.label(arm), entry.words]
            + [_plain(stored(results, who, *where)) for who in (arm, twin)]
            + [_bits(results, entry.bits), marked(results, share, digits=2, scale=1)]
            + [count(results.study.arms[arm].cost.parameters.bank), _bits(results, gone)]
        )
        raw.append(
            {"source": entry.source, "boundary": entry.boundary, "arm": arm}
            | {"verdict": entry.words, **_numbers("beyond_twin", entry.bits)}
            | {"p": entry.bits and entry.bits.p, **_numbers("per_bank_parameter", share)}
            | _numbers("gone_with_bank_zeroed", gone)
        )
    header = ["of", "arm", "its bank", "held", "by its twin", "beyond its twin"]
    header += ["bits per bank parameter", "bank parameters", "gone with the bank zeroed"]
    caption = f"What the bank stores, kbit{_OVER}{over_text(results)}"
    notes = [
        _TWIN,
        "Gone with the bank zeroed is no evidence of storing: a model can depend on a bank that "
        "adds nothing.",
        NEAR_ZERO_NOTE,
    ]
    return table_of(results, "banks", caption, header, rows, num_keys=2, notes=notes, raw=raw)


def knowledge(results: Results) -> Table:
    """Bits held at every boundary, and lost since they were taught."""
    rows: list[list[str]] = []
    raw: list[Row] = []
    for source in known_sources(results):
        taught = str(results.taught(source))
        for arm in results.arms:
            if not learns(results, arm, source):
                continue
            cells = []
            demand = 0.0
            for boundary in results.boundaries:
                found = stored(results, arm, boundary, source)
                cells.append(_plain(found))
                if (table := table_at(results, arm, boundary, source)) is not None:
                    demand = table.demand
                    share = right(results, arm, boundary, source)
                    raw.append(
                        {"source": source, "arm": arm, "boundary": boundary, "demand": demand}
                        | {"num_seeds": len(table.seeds), **_numbers("stored", found)}
                        | {"right": share and share.value}
                    )
            known = right(results, arm, taught, source)
            cells.append(MISSING if known is None else percent(known.value))
            cells.append(_bits(results, lost(results, arm, source)))
            keys = [f"{source}, {1e-3 * demand:,.1f} kbit", results.label(arm)]
            rows.append([*keys, *cells])
    header = ["source and demand", "arm", *results.boundaries, "right when taught, %"]
    header += ["lost since taught"]
    caption = f"Knowledge held, kbit{_OVER}{over_text(results)}"
    notes = [_METHOD, NEAR_ZERO_NOTE]
    return table_of(results, "knowledge", caption, header, rows, num_keys=2, notes=notes, raw=raw)


def attributes(results: Results) -> Table:
    """Bits held of one value, by attribute, after the phase that taught it."""
    rows: list[list[str]] = []
    raw: list[Row] = []
    for source in known_sources(results):
        taught = str(results.taught(source))
        for arm in results.arms:
            table = table_at(results, arm, taught, source) if learns(results, arm, source) else None
            for name, (bits, held, share) in (table.by_attribute if table else {}).items():
                rows.append(
                    [source, results.label(arm), name, f"{bits:.1f}", f"{held:.2f}", percent(share)]
                )
                raw.append(
                    {"source": source, "arm": arm, "attribute": name, "boundary": taught}
                    | {"bits": bits, "stored": held, "right": share}
                )
    header = ["source", "arm", "attribute", "bits of a value", "held", "right, %"]
    caption = f"Knowledge by attribute, bits of one value{over_text(results)}"
    return table_of(results, "attributes", caption, header, rows, num_keys=3, raw=raw)


def _bits(results: Results, estimate: Estimate | None) -> str:
    return marked(results, estimate, scale=1e-3)


def _plain(estimate: Estimate | None) -> str:
    """A level: no sign, and no mark where it is near nothing."""
    if estimate is None:
        return MISSING
    return plain(1e-3 * estimate.value, 1) + interval(estimate, digits=1, scale=1e-3)


def _numbers(name: str, estimate: Estimate | None) -> Row:
    found = (
        (None, None, None) if estimate is None else (estimate.value, estimate.low, estimate.high)
    )
    return dict(zip((name, f"{name}_low", f"{name}_high"), found, strict=True))
