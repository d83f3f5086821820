"""How many bits of the study's people and records every arm holds, and how many of them its bank.

S seeds, N people or records of one source, A attributes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evals.statistics.estimates import Estimate, estimate_of
from evals.statistics.inference import Interval, hierarchical_interval, share_interval
from evals.statistics.power import Variances, variances_of
from moc.report.numbers.items import Cell
from moc.report.numbers.read import item_records
from moc.report.numbers.results import Results
from moc.store.rundir import KNOWLEDGE

BANK = "knockout-bank"  # as evals.measures.controls names it


@dataclass(frozen=True)
class Table:
    """One arm at one boundary, perhaps under a control."""

    seeds: Sequence[int]
    keys: Sequence[str]  # of the people or records
    bits_SN: np.ndarray  # stored of each, all attributes together; may be negative
    right_SN: np.ndarray  # share of the attributes that are right
    num_all: int  # there are so many; the N are drawn from them
    demand: float  # bits, of all
    by_attribute: dict[str, tuple[float, float, float]]  # bits of a value, stored, share right


def known_sources(results: Results) -> list[str]:
    """Sources whose knowledge was measured, in the order in which they are taught."""
    found = dict.fromkeys(
        source
        for run in results.runs.values()
        for at in run.boundaries.values()
        for source in at.knowledge
    )
    taught = {name: results.taught(name) for name in results.study.sources if name in found}
    order = [name for name, phase in taught.items() if phase is not None]
    return sorted(order, key=lambda name: results.phases.index(str(taught[name])))


def learns(results: Results, arm: str, source: str) -> bool:
    """Whether any phase of ``arm`` trains on ``source``."""
    return any(source in phase.mixture for phase in results.phases_of(arm))


def first_learned(results: Results, arm: str) -> tuple[str, str] | None:
    """The source that ``arm`` learns first, and the boundary after the phase that taught it; None
    for an arm that learns none whose knowledge was measured."""
    for source in known_sources(results):
        if learns(results, arm, source):
            return source, str(results.taught(source))
    return None


def table_at(
    results: Results, arm: str, boundary: str, source: str, control: str = ""
) -> Table | None:
    """Of the seeds that have it; None if none has."""
    key = ("stored", arm, boundary, source, control)
    return results.once(key, lambda: _table(results, source, (arm, boundary, control)))


def stored(
    results: Results, arm: str, boundary: str, source: str, control: str = ""
) -> Estimate | None:
    """Bits held of all of ``source``. Not less than nothing: an attribute that costs more than
    its bits to say is not known, however wrong the model is."""
    found = table_at(results, arm, boundary, source, control)
    return None if found is None else _estimate(_whole(found))


def right(results: Results, arm: str, boundary: str, source: str) -> Interval | None:
    """Share of the values that the arm would say itself."""
    found = table_at(results, arm, boundary, source)
    return None if found is None else share_interval(found.right_SN, np.arange(len(found.keys)))


def difference(results: Results, source: str, plus: Cell, minus: Cell) -> Estimate | None:
    """Bits of ``plus`` (arm, boundary, control) minus those of ``minus``, on the same people or
    records and seeds; None without any."""
    paired = _paired(results, source, plus, minus)
    return None if paired is None else _estimate(paired[0] - paired[1])


def marginal(results: Results, arm: str, boundary: str, source: str) -> Estimate | None:
    """Bits that ``arm`` holds beyond its twin, whose bank stayed at its initial values."""
    twin = results.study.twin(arm)
    if twin is None:
        return None
    return difference(results, source, (arm, boundary, ""), (twin, boundary, ""))


def per_parameter(results: Results, arm: str, bits: Estimate | None) -> Estimate | None:
    """``bits`` over the parameters of the arm's bank."""
    count = results.study.arms[arm].cost.parameters.bank
    if bits is None or not count:
        return None
    low, high = bits.low / count, bits.high / count
    return Estimate(bits.value / count, bits.num_seeds, low, high, bits.p)


def in_bank(results: Results, arm: str, boundary: str, source: str) -> Estimate | None:
    """Bits that are gone with the bank zeroed. Alone no evidence that the bank stores them."""
    return difference(results, source, (arm, boundary, ""), (arm, boundary, BANK))


def lost(results: Results, arm: str, source: str) -> Estimate | None:
    """Bits held after the phase that taught ``source``, minus those at the end."""
    taught, last = results.taught(source), results.boundaries[-1]
    if taught in (None, last):
        return None
    return difference(results, source, (arm, str(taught), ""), (arm, last, ""))


def versus_bits(
    results: Results, arm: str, base: str, source: str
) -> tuple[Estimate, Variances | None, int] | None:
    """How many bits fewer ``arm`` lost of ``source`` than ``base``, what that varies by over seeds
    and records, and how many of these there were."""
    taught, last = str(results.taught(source)), results.boundaries[-1]
    cells = [(who, boundary, "") for who in (arm, base) for boundary in (taught, last)]
    paired = _paired(results, source, *cells) if taught != last else None
    if paired is None:
        return None
    before, after, base_before, base_after = paired
    change_SN = (after - before) - (base_after - base_before)
    estimate = _estimate(change_SN)
    variances = variances_of(change_SN, np.arange(change_SN.shape[1]))
    return estimate, variances, change_SN.shape[1]


def _table(results: Results, source: str, cell: Cell) -> Table | None:
    arm, boundary, control = cell
    rows: dict[int, dict[str, dict[str, float]]] = {}
    wins: dict[int, dict[str, list[str]]] = {}
    record = None
    for run in results.runs_of(arm):
        at = run.at(boundary)
        known = at.knowledge
        if control:
            known = at.controls[control].knowledge if control in at.controls else {}
        if source not in known:
            continue
        items = item_records(at, f"{KNOWLEDGE}{known[source].source}", control)
        if items:
            record = known[source]
            rows[run.seed] = {item["key"]: item["bits"] for item in items}
            wins[run.seed] = {item["key"]: item["right"] for item in items}
    if record is None:
        return None
    seeds = [seed for seed in results.seeds if seed in rows]
    keys = [key for key in rows[seeds[0]] if all(key in rows[seed] for seed in seeds)]
    names = list(record.attributes)
    pool_A = np.array([record.attributes[name] for name in names])
    cost_SNA = np.array(
        [[[rows[s][key].get(n, math.nan) for n in names] for key in keys] for s in seeds]
    )
    right_SNA = np.array([[[n in wins[s][key] for n in names] for key in keys] for s in seeds])
    # Attributes stand in random order, so that those beyond the context are like those that were
    # read: they are taken for the mean of these, and no one is left out.
    unread_SNA = np.isnan(cost_SNA)
    stored_SNA = _filled(pool_A - cost_SNA, unread_SNA)
    right_SNA = _filled(right_SNA.astype(float), unread_SNA)
    mean_A = stored_SNA.mean((0, 1))
    by_attribute = {
        name: (float(pool_A[i]), max(0.0, float(mean_A[i])), float(right_SNA[..., i].mean()))
        for i, name in enumerate(names)
    }
    return Table(
        seeds,
        keys,
        stored_SNA[..., mean_A > 0].sum(-1),
        right_SNA.mean(-1),
        record.num_all,
        record.demand,
        by_attribute,
    )


def _filled(values_SNA: np.ndarray, missing_SNA: np.ndarray) -> np.ndarray:
    """With every seed's mean of an attribute, over the people or records that have it, where it is
    missing."""
    known_SA = np.where(missing_SNA, 0.0, values_SNA).sum(1) / (~missing_SNA).sum(1)
    return np.where(missing_SNA, known_SA[:, None], values_SNA)


def _whole(found: Table) -> np.ndarray:
    return found.bits_SN * found.num_all


def _paired(results: Results, source: str, *cells: Cell) -> list[np.ndarray] | None:
    """Bits of every cell, scaled to all people or records, of the seeds and keys that all have."""
    tables = [table_at(results, arm, boundary, source, c) for arm, boundary, c in cells]
    found = [table for table in tables if table is not None]
    if len(found) < len(cells):
        return None
    seeds = [s for s in found[0].seeds if all(s in table.seeds for table in found)]
    shared = set.intersection(*(set(table.keys) for table in found))
    keys = [key for key in found[0].keys if key in shared]
    if not seeds or not keys:
        return None
    parts = []
    for table in found:
        rows = [list(table.seeds).index(seed) for seed in seeds]
        place = {key: i for i, key in enumerate(table.keys)}
        parts.append(_whole(table)[np.ix_(rows, [place[key] for key in keys])])
    return parts


def _estimate(values_SN: np.ndarray) -> Estimate:
    effect = hierarchical_interval(values_SN, np.arange(values_SN.shape[1]))
    return estimate_of(effect, len(values_SN))
