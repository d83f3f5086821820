"""Losses: of training, of every source, and on the data of earlier phases. W windows of text."""

from __future__ import annotations

import statistics
from typing import Literal

import numpy as np

from evals.statistics.forgetting import transition_deltas
from evals.statistics.inference import hierarchical_interval
from moc.report import looking_ahead as ahead
from moc.report.cells import (
    MISSING,
    NEAR_ZERO_NOTE,
    count,
    fixed,
    marked,
    over_text,
    signed,
    table_of,
)
from moc.report.effects import estimate_of
from moc.report.estimates import Estimate, over_seeds
from moc.report.layout import Table
from moc.report.looking_ahead import Routing
from moc.report.raw import Row, all_bits_per_byte
from moc.report.results import Results, mean_over_seeds

Unit = Literal["token", "byte"]
Loss = dict[
    int, tuple[float, np.ndarray]
]  # seed -> bits per token or byte, and of each window (W,)


def bits_per_byte(results: Results) -> Table:
    """Validation loss on every source at every boundary, in bits per byte of text."""
    rows = []
    means = {arm: mean_over_seeds(results.source_matrices(arm)) for arm in results.arms}
    for column, source in enumerate(results.sources):
        for arm in results.arms:
            levels = means[arm][:, column]
            changes = transition_deltas(means[arm])[1:, column]  # not the one from the start
            cells = [fixed(value, 3) for value in levels.tolist()]
            cells += [signed(value, 3) for value in changes.tolist()]
            rows.append([source, results.label(arm), *cells])
    header = ["source", "arm", *results.boundaries]
    header += [f"{before} → {after}" for before, after in results.transitions]
    what = "Bits per byte of validation text (facts: unseen phrasings); lower is better"
    caption = f"{what}{over_text(results)}"
    raw = all_bits_per_byte(results)
    return table_of(results, "bits_per_byte", caption, header, rows, num_keys=2, raw=raw)


def losses(results: Results) -> Table:
    rows = [
        [
            results.label(arm),
            *(fixed(results.last_loss(arm, phase), 3) for phase in results.phases),
            *(count(results.tokens_per_sec(arm, phase)) for phase in results.phases),
        ]
        for arm in results.arms
    ]
    header = ["arm", *(f"loss, {phase}" for phase in results.phases)]
    header += [f"tokens/s, {phase}" for phase in results.phases]
    caption = "Training loss (mean over the last tenth of a phase) and throughput"
    return table_of(results, "losses", caption, header, rows)


def earlier_loss(results: Results) -> Table:
    """How far the loss on the data of every phase but the last rose since; non-causal arms also as
    routed without looking ahead; and the difference to the iso-FLOP baseline, paired by seed."""
    baseline, last = ahead.iso_flop_arm(results), results.phases[-1]
    rows: list[list[str]] = []
    raw: list[Row] = []
    for source, unit in _earlier_sources(results):
        taught = str(results.taught(source))
        base = _rise(results, baseline, source, unit, "full") if baseline else {}
        for arm in results.arms:
            for routing in ahead.routings(results, arm):
                ends = [_loss(results, arm, b, source, unit, routing) for b in (taught, last)]
                rise = _rise(results, arm, source, unit, routing)
                if not ends[0]:
                    continue
                more = {seed: rise[seed] - base[seed] for seed in rise if seed in base}
                more = {seed: values for seed, values in more.items() if arm != baseline}
                rows.append(
                    [
                        f"{source}, bits/{unit}, since {taught}",
                        results.label(arm),
                        "prefix only" if routing == "prefix" else results.routing(arm),
                        " → ".join(_mean(end) for end in ends),
                        marked(results, _pooled(rise), digits=3, scale=1),
                        "baseline"
                        if arm == baseline
                        else marked(results, _pooled(more), digits=3, scale=1),
                    ]
                )
                raw += [
                    {"arm": arm, "seed": seed, "causal": results.is_causal(arm), "source": source}
                    | {"unit": f"bits/{unit}", "routing": routing, "from": taught, "to": last}
                    | {"forgotten": float(values.mean())}
                    | {"more": float(more[seed].mean()) if seed in more else None}
                    for seed, values in rise.items()
                ]
    header = ["data", "arm", "routing", "taught → last", "forgotten"]
    header += [f"more than {results.label(baseline)}" if baseline else "more than a baseline"]
    over = "seeds and windows" if len(results.seeds) > 1 else "windows"
    caption = (
        "Loss on every earlier phase's data: how far it rose since the first phase that teaches it "
        f"[95% interval over {over}]{over_text(results)}"
    )
    notes = [
        "Positive: forgotten. Differences between arms are paired by seed, on the same text.",
        NEAR_ZERO_NOTE,
    ]
    name = "earlier_loss"
    return table_of(results, name, caption, header, rows, num_keys=3, notes=notes, raw=raw)


def _earlier_sources(results: Results) -> list[tuple[str, Unit]]:
    """What was taught before the last phase; in bits per token where these were measured."""
    by_token = ahead.names(results, "sources", ahead.measured_arms(results))
    found: list[tuple[str, Unit]] = [(source, "token") for source in by_token]
    found += [(source, "byte") for source in results.sources if source not in by_token]
    return [pair for pair in found if results.taught(pair[0]) in results.phases[:-1]]


def _loss(
    results: Results, arm: str, boundary: str, source: str, unit: Unit, routing: Routing
) -> Loss:
    if unit == "byte":
        values = {
            run.seed: run.evals.get(boundary, {}).get("bits_per_byte", {}).get(source)
            for run in results.runs_of(arm)
        }
        return {seed: (v, np.array([v])) for seed, v in values.items() if v is not None}
    found: Loss = {}
    for seed, entry in ahead.entries(results, arm, boundary, "sources", source).items():
        if routing not in entry:
            continue
        windows = np.array([entry[routing]])
        if "per_window" in entry:  # weighted so that their mean is the bits per token
            bits_W = np.array(entry["per_window"][routing])
            windows = bits_W * len(bits_W) / sum(entry["per_window"]["num_tokens"])
        found[seed] = (entry[routing], windows)
    return found


def _rise(
    results: Results, arm: str, source: str, unit: Unit, routing: Routing
) -> dict[int, np.ndarray]:
    """Seed -> last loss minus the one when taught, by window."""
    boundaries = str(results.taught(source)), results.phases[-1]
    before, after = (_loss(results, arm, b, source, unit, routing) for b in boundaries)
    return {
        seed: after[seed][1] - before[seed][1]
        for seed in after
        if seed in before and len(after[seed][1]) == len(before[seed][1])
    }


def _pooled(found: dict[int, np.ndarray]) -> Estimate | None:
    """Over seeds and windows; over seeds alone where the windows were not kept."""
    values = list(found.values())
    if len({len(windows) for windows in values}) == 1 and len(values[0]) > 1:
        effect = hierarchical_interval(np.stack(values), np.arange(len(values[0])))
        return estimate_of(effect, len(values))
    return over_seeds([float(windows.mean()) for windows in values])


def _mean(found: Loss) -> str:
    return fixed(statistics.fmean(v for v, _ in found.values()), 3) if found else MISSING
