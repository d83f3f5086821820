"""A reader of the report learns where training jumped."""

from __future__ import annotations

from pathlib import Path

from moc.report import load_results, result_tables
from moc.report.figures.losses import losses
from moc.report.numbers.spikes import Spike, spikes
from moc.report.tables.spikes import spiked
from tests.support.fake_runs import add_spike, fake_study, write_study


def test_a_spike_is_a_row_and_a_cross(tmp_path: Path) -> None:
    study = fake_study(tmp_path, num_steps=(40, 20))
    write_study(study)
    tokens = add_spike(study, "moc", 0)
    results = load_results(study.dir)
    assert spikes(results) == [Spike("moc", 0, "pretrain", tokens, 9.5, 12.0, 40.0, 30.0, True)]
    (row,) = spiked(results).rows
    assert row[1:3] == ["0", "pretrain"] and row[-1] == "skipped"
    figure = losses(results)
    assert figure is not None and "Crosses: spikes." in figure.caption
    assert "Spikes: steps whose loss" in result_tables(results)


def test_a_smooth_training_has_neither(tmp_path: Path) -> None:
    study = fake_study(tmp_path, num_steps=(20, 10))
    results = load_results(write_study(study))
    assert spiked(results).rows == []
    figure = losses(results)
    assert figure is not None and "Crosses" not in figure.caption
