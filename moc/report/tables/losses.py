"""Losses: of training, of every source, and on the data of earlier phases."""

from __future__ import annotations

from evals.statistics.estimates import mean_over_seeds
from evals.statistics.forgetting import transition_deltas
from moc.report.numbers.losses import rises
from moc.report.numbers.raw import Row, all_bits_per_byte
from moc.report.numbers.results import Results
from moc.report.tables.cells import (
    NEAR_ZERO_NOTE,
    count,
    fixed,
    marked,
    over_text,
    signed,
    table_of,
)
from moc.report.tables.layout import Table


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
    routed on the prefix alone; and the difference to the iso-FLOP baseline, paired by seed."""
    baseline, last = results.iso_flop_arm, results.phases[-1]
    rows: list[list[str]] = []
    raw: list[Row] = []
    for rise in rises(results):
        arm = rise.arm
        more = marked(results, rise.more, digits=3, scale=1)
        rows.append(
            [
                f"{rise.source}, bits/{rise.unit}, since {rise.taught}",
                results.label(arm),
                "prefix only" if rise.route == "prefix" else results.routing(arm),
                f"{fixed(rise.before, 3)} → {fixed(rise.after, 3)}",
                marked(results, rise.forgotten, digits=3, scale=1),
                "baseline" if arm == baseline else more,
            ]
        )
        raw += [
            {"arm": arm, "seed": seed, "causal": results.is_causal(arm), "source": rise.source}
            | {"unit": f"bits/{rise.unit}", "routing": rise.route, "from": rise.taught, "to": last}
            | {"forgotten": forgotten, "more": more_than_baseline}
            for seed, (forgotten, more_than_baseline) in rise.by_seed.items()
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
