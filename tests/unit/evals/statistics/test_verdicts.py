"""Tests and verdicts: worked examples, and small studies whose verdict is known."""

import math

import numpy as np
import pytest
from scipy import stats

from evals.statistics import inference as s

NAN = math.nan


def alone(num_items):
    """Every item a cluster of its own."""
    return np.arange(num_items)


def study_arm(rng, num_seeds, num_items, forgets):
    """Rights before and after a phase in which each right answer is lost with this probability."""
    before_SN = rng.random((num_seeds, num_items)) < 0.9
    kept_SN = rng.random((num_seeds, num_items)) >= forgets
    return before_SN.astype(float), (before_SN & kept_SN).astype(float)


def test_an_arm_that_forgets_is_told_from_one_that_does_not():
    rng = np.random.default_rng(6)
    forgets = study_arm(rng, 3, 300, 0.4)
    frozen = study_arm(rng, 3, 300, 0.0)
    np.testing.assert_array_equal(*frozen)
    person_N = alone(300) // 6

    found = s.difference_in_differences(*forgets, *frozen, person_N)
    assert found.value == pytest.approx(-0.36, abs=0.05)
    assert found.high < 0
    (adjusted,) = s.holm([found.p])
    assert s.verdict(found, adjusted) == "forgets more"
    turned = s.difference_in_differences(*frozen, *forgets, person_N)
    assert turned.value == -found.value
    assert s.verdict(turned, turned.p) == "forgets less"
    assert s.verdict(turned, turned.p, better="learns", worse="fails") == "learns"


def test_identical_arms_are_not_distinguishable():
    arm = study_arm(np.random.default_rng(7), 3, 300, 0.4)
    found = s.difference_in_differences(*arm, *arm, alone(300))
    assert found.value == 0 and found.low < 0 < found.high and found.p == 1
    assert s.verdict(found, found.p) == "not distinguishable"


def test_arms_that_forget_alike_on_different_items_are_not_distinguishable():
    rng = np.random.default_rng(8)
    arms = (*study_arm(rng, 3, 300, 0.4), *study_arm(rng, 3, 300, 0.4))
    found = s.difference_in_differences(*arms, alone(300))
    assert s.verdict(found, found.p) == "not distinguishable"


def test_a_difference_that_holds_among_few_tasks_must_hold_among_all():
    effect = s.Effect(0.05, 0.01, 0.09, 0.02)
    assert s.verdict(effect, s.holm([effect.p])[0]) == "forgets less"
    assert s.verdict(effect, s.holm([effect.p, 0.3, 0.5])[0]) == "not distinguishable"


@pytest.mark.parametrize(
    ("lost", "gained"), [(0, 0), (1, 0), (0, 6), (8, 2), (12, 12), (7, 30), (60, 40)]
)
def test_mcnemar_is_the_binomial_test_of_the_items_that_changed(lost, gained):
    before_N = np.array([1] * lost + [0] * gained + [1] * 20 + [0] * 10)
    after_N = np.array([0] * lost + [1] * gained + [1] * 20 + [0] * 10)
    expected = stats.binomtest(lost, lost + gained).pvalue if lost + gained else 1.0
    assert s.mcnemar_exact(before_N, after_N) == pytest.approx(expected)


def test_mcnemar_leaves_out_what_was_not_measured():
    before_N, after_N = np.array([1.0] * 6 + [NAN]), np.array([0.0] * 6 + [1.0])
    assert s.mcnemar_exact(before_N, after_N) == pytest.approx(2 * 0.5**6)


def test_churn_counts_both_ways_by_hand():
    before_SN = np.array([[1, 1, 1, 0, 0, 1, 1, 0, 1, 1], [1, 1, 1, 1, 0, 0, 1, 0, 1, 1]])
    after_SN = np.array([[0, 0, 1, 1, 0, 1, 1, 0, 1, 0], [0, 1, 1, 1, 1, 1, 1, 0, 1, 1]])
    lost, gained = s.churn(before_SN, after_SN, alone(10))
    assert lost.value == pytest.approx(4 / 20)  # items 0, 1, 9 and item 0 again
    assert gained.value == pytest.approx(3 / 20)  # item 3; items 4 and 5
    assert 0 <= lost.low < lost.value < lost.high <= 1


def test_a_score_that_stays_hides_what_was_lost_and_gained():
    before_SN = (np.arange(100) < 50).astype(float)[None]
    after_SN = 1 - before_SN
    assert before_SN.mean() == after_SN.mean()
    lost, gained = s.churn(before_SN, after_SN, alone(100))
    assert lost.value == gained.value == 0.5


def test_holm_by_hand():
    """4 x 0.005, 3 x 0.01, 2 x 0.03, and 0.04 not below the one before it."""
    assert s.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert s.holm([0.6, 0.7]) == [1.0, 1.0]
    assert s.holm([0.02, NAN, 0.04]) == pytest.approx([0.04, NAN, 0.04], nan_ok=True)
    assert s.holm([]) == []
