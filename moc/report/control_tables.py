"""How much of a score lives in the bank: scores under knockouts and with earlier banks."""

from __future__ import annotations

from typing import Any

from evals.statistics.inference import share_interval
from moc.report import effects
from moc.report.cells import NEAR_ZERO_NOTE, fixed, items_text, level, marked, table_of
from moc.report.estimates import over_seeds
from moc.report.items import controls_of
from moc.report.layout import Table
from moc.report.raw import Row
from moc.report.results import NEAR, Results
from moc.report.scores import Score, score_of

KINDS = "Knockout: values of the bank zeroed. Bank swap: the bank of an earlier boundary."


def controls(results: Results) -> list[Table]:
    """One table per boundary: scores and losses as they are, and what each control changes."""
    return [_at(results, boundary) for boundary in results.phases]


def controlled_arms(results: Results, boundary: str) -> list[str]:
    return [
        arm
        for arm in results.arms
        if any(controls_of(run.evals.get(boundary, {})) for run in results.runs_of(arm))
    ]


def score_under(results: Results, arm: str, task: str, boundary: str, control: str) -> Score | None:
    """The score under ``control``; under "" as it is, on the items that controls score."""
    key = ("under", arm, task, boundary, control)
    return results.once(key, lambda: _under(results, arm, task, boundary, control))


def _under(results: Results, arm: str, task: str, boundary: str, control: str) -> Score | None:
    other = control or next(iter(effects.control_names(results, boundary)), "")
    records = [
        record
        for run in results.runs_of(arm)
        if (record := _record(run.evals.get(boundary, {}), other).get("tasks", {}).get(task))
    ]
    if control:
        common = results.items(task).common((arm, boundary, control))
        return score_of(records, common)
    common = results.items(task).common((arm, boundary, ""), (arm, boundary, other))
    if common is None or not records:
        return None
    value, low, high = share_interval(common.values[0], common.cluster_N)
    chance, majority = records[0]["chance"], records[0]["majority"]
    return Score(value, low, high, chance, majority, common.values[0].shape[1])


def _record(record: dict[str, Any], control: str) -> dict[str, Any]:
    return controls_of(record).get(control, {})


def _at(results: Results, boundary: str) -> Table:
    names = effects.control_names(results, boundary)
    arms = controlled_arms(results, boundary)
    rows: list[list[str]] = []
    raw: list[Row] = []
    for task in results.tasks:
        for arm in arms:
            found = [effects.controlled(results, arm, task, boundary, name) for name in names]
            if not any(found):
                continue
            as_it_is = level(score_under(results, arm, task, boundary, ""))
            cells = [marked(results, estimate) for estimate in found]
            rows.append([f"{task}, %", results.label(arm), as_it_is, *cells])
            for name, estimate in zip(names, found, strict=True):
                under = score_under(results, arm, task, boundary, name)
                if estimate and under:
                    raw.append(
                        Row()
                        | {"boundary": boundary, "task": task, "arm": arm, "control": name}
                        | {"num_seeds": estimate.num_seeds, "num_items": under.num_items}
                        | {"as_it_is": under.value - estimate.value, "under_control": under.value}
                        | {"difference": estimate.value, "low": estimate.low}
                        | {"high": estimate.high, "p": estimate.p}
                    )
    for source in results.sources if names else []:
        for arm in arms:
            bits = results.bits_per_byte(arm, boundary, source)
            cells = [_loss_change(results, arm, boundary, source, name) for name in names]
            rows.append([f"{source}, bits/byte", results.label(arm), fixed(bits, 3), *cells])
    header = ["score", "arm", "as it is", *names]
    caption = (
        f"Controls after {boundary}: what each changes on the same items, in points "
        f"{items_text(results)}"
    )
    notes = [
        f"{KINDS} {NEAR} before a score: not distinguishable from its baseline. Bits per byte: "
        "positive is worse; intervals are over seeds alone.",
        NEAR_ZERO_NOTE,
    ]
    name = f"controls-{boundary}"
    return table_of(results, name, caption, header, rows, num_keys=2, notes=notes, raw=raw)


def _loss_change(results: Results, arm: str, boundary: str, source: str, control: str) -> str:
    changes = []
    for run in results.runs_of(arm):
        record = run.evals.get(boundary, {})
        under = _record(record, control).get("bits_per_byte", {})
        if source in under and source in record.get("bits_per_byte", {}):
            changes.append(under[source] - record["bits_per_byte"][source])
    return marked(results, over_seeds(changes), digits=3, scale=1)
