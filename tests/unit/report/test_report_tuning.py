"""How a sampler's trials are shown: as points, and those that were pruned apart from them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from moc.report.figures import tuning as figures
from moc.report.numbers.results import Results, load_results
from moc.report.tables.tuning import tuned as table
from tests.support.fake_runs import fake_study, write_study

RATES = {"low": 0.1, "high": 10.0, "log": True}


def trial(point: dict[str, Any], metric: float, state: str = "finished") -> dict[str, Any]:
    share, tokens = (1 / 3, 333) if state == "pruned" else (1.0, 1000)
    return {"point": point, "metric": [metric], "share": share, "state": state, "tokens": tokens}


@pytest.fixture
def results(tmp_path: Path) -> Results:
    """Of moc a rate and the bank's, of iso_flop a rate alone."""
    folder = write_study(fake_study(tmp_path, arms=("moc", "iso_flop")))
    of_moc = [
        trial({"lr_scale": 0.5, "bank": 3}, 1.5),
        trial({"lr_scale": 2.0, "bank": 1}, 1.25),
        trial({"lr_scale": 4.0, "bank": 3}, 1.4),
        trial({"lr_scale": 0.2, "bank": 1}, 0.9, "pruned"),  # of less training, so of no meaning
        trial({"lr_scale": 9.0, "bank": 1}, math.inf, "diverged"),
    ]
    dense = [trial({"lr_scale": rate}, 1.6 - rate / 10) for rate in (1.0, 3.0)]
    dense += [trial({"lr_scale": 7.0}, 3.0, "pruned"), trial({"lr_scale": 8.0}, 3.0, "pruned")]
    arms = {
        name: {
            "chosen": dict(trials[1]["point"]),
            "at_edge": [],
            "settings": {},
            "tokens": sum(one["tokens"] for one in trials),
            "trials": trials,
        }
        for name, trials in (("moc", of_moc), ("iso_flop", dense))
    }
    said = {"axes": {"lr_scale": RATES, "bank": [1, 3]}, "metric": "bits per byte", "budget": 0.5}
    said |= {"seeds": [9], "sampler": "tpe", "pruner": "asha", "asked": 6, "arms": arms}
    (folder / "tuning.yaml").write_text(yaml.safe_dump(said, sort_keys=False))
    return load_results(folder)


def test_the_table_counts_what_was_pruned_and_not_its_metric(results: Results) -> None:
    found = table(results)
    assert found is not None and "the best point of 6 trials (tpe) of lr_scale" in found.caption
    rows = [dict(zip(found.header, row, strict=True)) for row in found.rows]
    assert [row["chosen"] for row in rows] == ["lr_scale 2.0, bank 1", "lr_scale 3.0"]
    assert [row["bits/byte"] for row in rows] == ["1.2500", "1.3000"]
    assert [row["worst that ended"] for row in rows] == ["1.5000", "1.5000"]
    assert [row["pruned"] for row in rows] == ["1", "2"]
    assert [row["points"] for row in rows] == ["5", "4"]
    assert [row["tokens spent"] for row in rows] == ["4,333", "2,666"]


def test_the_figure_joins_no_points_and_marks_the_pruned_apart(
    results: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(figures, "finish", lambda canvas, *said: drawn.extend([canvas, *said]))
    figures.sensitivity(results)
    canvas, _, caption, _ = drawn
    assert "ticks above: 3 trials that were pruned" in caption
    rate, bank = [axes for axes in canvas.axes if axes.get_xlabel()]
    points, ticks, chosen = rate.lines[:3]  # of moc
    assert list(points.get_xdata()) == [0.5, 2.0, 4.0] and points.get_linestyle() == "None"
    assert list(points.get_ydata()) == [1.5, 1.25, 1.4]
    assert list(ticks.get_xdata()) == [0.2] and ticks.get_marker() == "|"
    assert list(chosen.get_xdata()) == [2.0] and list(chosen.get_ydata()) == [1.25]
    assert rate.get_xscale() == "log" and len(rate.lines) == 6
    assert len(bank.lines) == 3  # iso_flop has none
    assert [text.get_text() for text in bank.get_xticklabels()] == ["1", "3"]
