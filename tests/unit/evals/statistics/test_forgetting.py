"""Matrices small enough to check by hand."""

import copy
import math
import subprocess
import sys

import numpy as np
import pytest

from evals.statistics import forgetting as f


def record(index, boundary, tasks, bits):
    scores = {name: {"metric": "acc", "value": value} for name, value in tasks.items()}
    return {"index": index, "boundary": boundary, "tasks": scores, "bits_per_byte": bits}


RUN = [
    record(0, "start", {"facts": 0.25, "skills": 0.0}, {"people": 8.0}),
    record(1, "pretrain", {"facts": 0.90, "skills": 0.10}, {"people": 0.5, "skills": 3.0}),
    record(2, "tune", {"facts": 0.60, "skills": 0.75}, {"people": 0.8, "skills": 1.0}),
]


def test_scores_are_laid_out_by_boundary_and_task():
    boundaries, names, values = f.score_matrix(RUN)
    assert boundaries == ["start", "pretrain", "tune"]
    assert names == ["facts", "skills"]
    np.testing.assert_array_equal(values, [[0.25, 0.0], [0.90, 0.10], [0.60, 0.75]])


def test_what_was_not_measured_at_a_boundary_is_missing_not_zero():
    _, names, values = f.bits_per_byte_matrix(RUN)
    assert names == ["people", "skills"]
    assert math.isnan(values[0, 1])
    np.testing.assert_array_equal(values[:, 0], [8.0, 0.5, 0.8])


def test_records_of_a_run_out_of_order_are_refused():
    with pytest.raises(ValueError, match="boundary order"):
        f.score_matrix([RUN[1], RUN[0]])
    with pytest.raises(ValueError, match="boundary order"):
        f.score_matrix([RUN[0], RUN[0]])


def test_deltas_and_forgetting_by_hand():
    values = f.score_matrix(RUN).values
    np.testing.assert_allclose(f.transition_deltas(values), [[0.65, 0.10], [-0.30, 0.65]])
    np.testing.assert_allclose(f.forgetting(values), [0.30, -0.65])  # skills improved: negative


def test_the_best_earlier_boundary_counts_not_the_one_before_the_last():
    values = np.array([[0.1, 0.2], [0.9, 0.3], [0.5, 0.8], [0.4, 0.7]])
    np.testing.assert_allclose(f.forgetting(values), [0.5, 0.1])


def test_losses_forget_upwards():
    values = f.bits_per_byte_matrix(RUN).values
    np.testing.assert_allclose(f.loss_forgetting(values), [0.3, -2.0])


def test_forgetting_so_far_is_measured_from_the_second_phase_on():
    assert f.forgetting_so_far(RUN[:1]) == f.forgetting_so_far(RUN[:2]) == {}
    assert f.forgetting_so_far(RUN) == pytest.approx({"facts": 0.30, "skills": -0.65})
    added = record(2, "tune", {"facts": 0.60, "new": 0.5}, {})  # nobody knows if new was forgotten
    assert f.forgetting_so_far([*RUN[:2], added]) == pytest.approx({"facts": 0.30})


def test_missing_scores_do_not_hide_or_invent_forgetting():
    values = np.array([[np.nan, np.nan], [0.9, np.nan], [0.6, 0.5]])
    np.testing.assert_allclose(f.forgetting(values), [0.3, np.nan])
    values = np.array([[0.9], [np.nan]])
    np.testing.assert_array_equal(f.forgetting(values), [np.nan])


@pytest.mark.parametrize("records", [[], RUN[:1]])
def test_a_run_that_has_just_begun_has_no_forgetting_yet(records):
    matrix = f.score_matrix(records)
    assert np.isnan(f.forgetting(matrix.values)).all()
    assert f.transition_deltas(matrix.values).shape == (0, len(matrix.names))


def rights(*nums_right):
    """Seeds with so many of 100 items right."""
    return (np.arange(100) < np.array(nums_right)[:, None]).astype(float)


def test_retention_is_counted_from_the_baseline_by_hand():
    found = f.retention(rights(80, 90, 85), rights(55, 50, 60), np.arange(100), 0.25).value
    assert found == pytest.approx((0.55 - 0.25) / (0.85 - 0.25))
    below = f.retention(rights(85), rights(10), np.arange(100), 0.25).value
    assert below == pytest.approx(-0.15 / 0.60)


def test_what_was_never_known_cannot_be_retained():
    items = np.arange(100)
    assert math.isnan(f.retention(rights(30), rights(30), items, 0.25).value)
    assert math.isnan(f.retention(rights(25), rights(80), items, 0.25).value)
    # clear of 0.25 if its 100 items were independent; they are 10 passages, 4 of them all right
    assert math.isnan(f.retention(rights(40), rights(40), items // 10, 0.25).value)
    assert f.retention(rights(40), rights(40), items, 0.25).value == pytest.approx(1)


def test_retention_pairs_the_items_that_both_boundaries_have():
    before, after = rights(80), rights(60)
    before[0, 99], after[0, 0] = math.nan, math.nan
    expected = (59 / 98 - 0.25) / (79 / 98 - 0.25)
    assert f.retention(before, after, np.arange(100), 0.25).value == pytest.approx(expected)
    with pytest.raises(ValueError, match="paired"):
        f.retention(rights(80, 80), rights(80), np.arange(100), 0.25)


def test_inputs_are_left_alone():
    records = copy.deepcopy(RUN)
    values = f.score_matrix(records).values
    before = values.copy()
    f.forgetting(values), f.loss_forgetting(values), f.transition_deltas(values)
    assert records == RUN
    np.testing.assert_array_equal(values, before)


def test_wilson_intervals_of_none_and_of_half_equal_their_closed_forms():
    square = 1.959963984540054**2
    assert f.wilson_interval(0.0, 20) == pytest.approx((0.0, square / (20 + square)))
    half = math.sqrt(square / (10 + square)) / 2
    assert f.wilson_interval(0.5, 10) == pytest.approx((0.5 - half, 0.5 + half))


def test_wilson_interval_is_where_the_normal_score_test_does_not_reject():
    """Its ends are the shares p with (value - p)^2 = z^2 p (1 - p) / n, found on a fine grid."""
    grid = np.linspace(0, 1, 2_000_001)
    accepted = grid[(0.37 - grid) ** 2 <= 3.8414588 * grid * (1 - grid) / 60]
    expected = (accepted.min(), accepted.max())
    assert f.wilson_interval(0.37, 60) == pytest.approx(expected, abs=2e-6)


@pytest.mark.parametrize(("value", "num_items"), [(0.5, 0), (1.5, 10), (-0.1, 10)])
def test_an_interval_of_nothing_is_refused(value, num_items):
    with pytest.raises(ValueError, match="no interval"):
        f.wilson_interval(value, num_items)


def test_reading_results_needs_no_torch():
    program = "import sys, evals.statistics.forgetting; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
