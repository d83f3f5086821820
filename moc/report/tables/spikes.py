"""Steps whose loss or gradient norm jumped."""

from __future__ import annotations

from moc.report.numbers.results import Results
from moc.report.numbers.spikes import spikes
from moc.report.tables.cells import count, fixed, table_of
from moc.report.tables.layout import Table


def spiked(results: Results) -> Table:
    """One row a step; none where training went smoothly."""
    rows = [
        [
            results.label(spike.arm),
            str(spike.seed),
            spike.phase,
            count(spike.tokens),
            fixed(spike.loss, 3),
            fixed(spike.loss_sigmas, 1),
            fixed(spike.grad_norm, 3),
            fixed(spike.grad_norm_sigmas, 1),
            "skipped" if spike.skipped else "made",
        ]
        for spike in spikes(results)
    ]
    header = ["arm", "seed", "phase", "at tokens", "loss", "sigma", "gradient norm", "sigma"]
    header += ["update"]
    caption = (
        "Spikes: steps whose loss or gradient norm lay more than 6 standard deviations above the "
        "128 steps before (of logarithms); sigma: how far, 0 within the band"
    )
    return table_of(results, "spikes", caption, header, rows, num_keys=3)
