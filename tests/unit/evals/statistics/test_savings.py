"""Learning curves drawn by hand."""

import math

import pytest

from evals.statistics.savings import recovery, savings, tokens_to_reach

CURVE = [(0, 0.2), (1000, 0.4), (2000, 0.8), (3000, 0.7), (4000, 0.9)]


@pytest.mark.parametrize(
    ("target", "tokens"),
    [
        (0.4, 1000),
        (0.5, 1250),  # a quarter of the way from 0.4 to 0.8
        (0.8, 2000),
        (0.75, 1875),  # the first time, though it falls again
        (0.85, 3750),
        (0.1, 0),  # nothing to learn
        (0.95, None),
    ],
)
def test_tokens_to_a_score_are_read_off_the_line(target, tokens):
    assert tokens_to_reach(CURVE, target) == (None if tokens is None else pytest.approx(tokens))


def test_scores_that_were_not_measured_are_skipped():
    points = [(0, math.nan), (1000, 0.4), (2000, math.nan), (3000, 0.8)]
    assert tokens_to_reach(points, 0.6) == pytest.approx(2000)
    assert tokens_to_reach(points, 0.4) == 1000
    assert tokens_to_reach([(0, math.nan)], 0.5) is None
    assert tokens_to_reach([], 0.5) is None


def test_points_out_of_order_are_refused():
    with pytest.raises(ValueError, match="increase"):
        tokens_to_reach([(1000, 0.1), (0, 0.5)], 0.3)


def test_savings_are_the_share_of_the_tokens_not_needed_again():
    assert savings(250, 1000) == 0.75
    assert savings(0, 1000) == 1
    assert savings(1500, 1000) == -0.5


@pytest.mark.parametrize(("again", "first"), [(None, 1000), (100, None), (None, None), (0, 0)])
def test_savings_of_what_was_never_reached_are_undefined(again, first):
    assert math.isnan(savings(again, first))


def test_savings_of_negative_tokens_are_refused():
    with pytest.raises(ValueError, match="-5"):
        savings(-5, 100)


def test_recovery_is_the_share_of_the_loss_that_comes_back():
    assert recovery(0.9, 0.3, 0.75) == pytest.approx(0.75)
    assert recovery(0.9, 0.3, 0.3) == 0
    assert recovery(0.9, 0.3, 0.2) == pytest.approx(-1 / 6)
    assert recovery(0.9, 0.3, 0.96) == pytest.approx(1.1)


@pytest.mark.parametrize("after", [0.9, 0.95, math.nan])
def test_nothing_lost_nothing_to_recover(after):
    assert math.isnan(recovery(0.9, after, 0.95))
