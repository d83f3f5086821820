"""Means over seeds and their intervals: worked examples."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats

from evals.statistics.estimates import (
    estimate_of,
    mean_of_known,
    mean_over_seeds,
    over_intervals,
    over_seeds,
    over_windows,
    ratio_variance,
)
from evals.statistics.inference import Interval, hierarchical_interval

T_OF_3_SEEDS = 4.302653  # Student's t at 0.975, 2 degrees of freedom, from a printed table


def satterthwaite_half(own: float, common: float) -> float:
    """Half an interval from the variance over three seeds and one that is known."""
    total = own + common
    return float(scipy.stats.t.ppf(0.975, 2 * (total / own) ** 2)) * math.sqrt(total)


def test_the_interval_over_seeds_is_students() -> None:
    estimate = over_seeds([1.0, 2.0, 4.0])
    assert estimate is not None and estimate.num_seeds == 3
    half = T_OF_3_SEEDS * math.sqrt((16 / 9 + 1 / 9 + 25 / 9) / 2) / math.sqrt(3)
    expected = (7 / 3, 7 / 3 - half, 7 / 3 + half)
    assert (estimate.value, estimate.low, estimate.high) == pytest.approx(expected, rel=1e-6)
    assert estimate.near_zero


def test_what_all_seeds_share_is_added_to_what_they_differ_in() -> None:
    """Three seeds scored on the same few tokens agree more with each other than with the truth."""
    own = (16 / 9 + 1 / 9 + 25 / 9) / 2 / 3
    half = satterthwaite_half(own, 0.25)
    estimate = over_seeds([1.0, 2.0, 4.0], common_variance=0.25)
    assert estimate is not None and estimate.high - 7 / 3 == pytest.approx(half, rel=1e-6)
    same = over_seeds([0.0, 0.0, 0.0])  # no spread is no certainty either
    assert same is not None and not same.has_interval and not same.near_zero
    intervals = [Interval(v, v - 1.96, v + 1.96) for v in (1.0, 2.0, 4.0)]
    shared = over_intervals(intervals)  # the variance of each is 1
    assert shared is not None
    half = satterthwaite_half(own, 1.0)
    assert half < T_OF_3_SEEDS * math.sqrt(own + 1)  # the shared part is known well
    assert shared.high - 7 / 3 == pytest.approx(half, rel=1e-4)


def test_the_variance_of_a_ratio_over_windows_by_hand() -> None:
    """Means 1 and 3 of windows of 2 and 2 tokens: 2 +- 1; a window alone says nothing."""
    assert ratio_variance([2.0, 6.0], [2, 2]) == pytest.approx(2 * (4 + 4) / 16)
    assert ratio_variance([4.0, 2.0], [2, 1]) == 0.0
    assert ratio_variance([4.0], [2]) == 0.0


def test_one_seed_has_no_interval_over_seeds() -> None:
    """An interval of width zero would read as certainty."""
    for values in ([0.5], [0.5, math.nan]):
        estimate = over_seeds(values)
        assert estimate is not None and estimate.value == 0.5
        assert not estimate.has_interval and not estimate.near_zero
    assert over_seeds([]) is None and over_seeds([math.nan]) is None
    alone = over_intervals([Interval(0.5, 0.4, 0.7)])
    assert alone is not None and (alone.low, alone.high) == (0.4, 0.7)  # of its own windows


def test_windows_that_all_seeds_have_are_resampled_with_the_seeds() -> None:
    values_SW = np.random.default_rng(0).normal(1, 0.5, (3, 20))
    expected = estimate_of(hierarchical_interval(values_SW, np.arange(20)), 3)
    assert over_windows(list(values_SW)) == expected
    # of other windows, or of none: the seeds' means alone
    short = [values_SW[0], values_SW[1], values_SW[2, :10]]
    assert over_windows(short) == over_seeds([float(values_W.mean()) for values_W in short])
    assert over_windows([np.array([1.0]), np.array([2.0])]) == over_seeds([1.0, 2.0])
    assert over_windows([]) is None


def test_what_was_not_measured_is_left_out_of_a_mean() -> None:
    assert mean_of_known([1.0, None, math.nan, math.inf, 3.0]) == 2.0
    assert mean_of_known([None, math.nan]) is None
    values = np.array([[1.0, math.nan], [3.0, math.nan]])
    np.testing.assert_array_equal(mean_over_seeds(values), [2.0, math.nan])
