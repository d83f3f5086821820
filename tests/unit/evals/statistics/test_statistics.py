"""Intervals: worked examples, and tables of which little can be said."""

import math
import subprocess
import sys

import numpy as np
import pytest
from scipy import stats

from evals.statistics import inference as s
from evals.statistics.forgetting import retention

NAN = math.nan


def alone(num_items):
    """Every item a cluster of its own."""
    return np.arange(num_items)


def rights(num_right, num_items):
    """One model with the first so many items right (1, N)."""
    return (np.arange(num_items) < num_right).astype(float)[None]


def test_one_model_gets_the_t_interval_of_its_items():
    values_SN = np.random.default_rng(0).normal(0.3, 1.0, (1, 400))
    found = s.hierarchical_interval(values_SN, alone(400), num_draws=20_000)
    expected = stats.t.interval(0.95, 399, values_SN.mean(), values_SN.std(ddof=1) / 20)
    assert found.value == pytest.approx(values_SN.mean())
    assert (found.low, found.high) == pytest.approx(expected, abs=0.004)
    assert found.p == pytest.approx(stats.ttest_1samp(values_SN[0], 0).pvalue, abs=0.002)


def test_seeds_that_differ_alone_get_the_t_interval_of_their_means():
    """Items all alike within a seed: 0.1, 0.2 and 0.6 with 2 degrees of freedom, by hand."""
    values_SN = np.array([[0.1], [0.2], [0.6]]) * np.ones((3, 50))
    found = s.hierarchical_interval(values_SN, alone(50), num_draws=20_000)
    half = 4.302653 * math.sqrt(0.07 / 3)  # variance (0.04 + 0.01 + 0.09) / 2 of three means
    assert found == pytest.approx((0.3, 0.3 - half, 0.3 + half, 0.187790), abs=0.002)


def test_items_shared_by_all_seeds_count_once():
    """Three models that agree on every item are one model asked three times."""
    one_SN = np.random.default_rng(1).normal(0.0, 1.0, (1, 200))
    once = s.hierarchical_interval(one_SN, alone(200))
    thrice = s.hierarchical_interval(np.repeat(one_SN, 3, axis=0), alone(200))
    assert thrice == pytest.approx(once)


def test_questions_about_one_person_count_as_one():
    """40 people whose 6 answers are all alike: as wide as 40 items, not as 240."""
    people_SN = np.random.default_rng(2).normal(0.0, 1.0, (1, 40))
    answers_SN = np.repeat(people_SN, 6, axis=1)
    clustered = s.hierarchical_interval(answers_SN, np.repeat(alone(40), 6))
    assert clustered == pytest.approx(s.hierarchical_interval(people_SN, alone(40)))
    naive = s.hierarchical_interval(answers_SN, alone(240))
    assert clustered.high - clustered.low > 2 * (naive.high - naive.low)


def test_labels_and_order_of_clusters_do_not_matter():
    values_SN = np.random.default_rng(3).normal(0.0, 1.0, (3, 60))
    cluster_N = np.arange(60) // 6
    names = [f"people-{9 - number}" for number in cluster_N]
    expected = s.hierarchical_interval(values_SN, cluster_N)
    found = s.hierarchical_interval(values_SN, names)
    assert found == pytest.approx(expected, abs=0.05)  # other clusters are drawn, no more
    assert s.hierarchical_interval(values_SN, cluster_N) == expected


def test_agreeing_seeds_are_no_more_certain_than_their_items():
    """Three models of the very same score, each right on other items, as if by chance."""
    values_SN = np.zeros((3, 90))
    for row in range(3):
        values_SN[row, 20 * row : 20 * row + 20] = 1.0
    found = s.hierarchical_interval(values_SN, alone(90))
    items = s.hierarchical_interval(values_SN.mean(0, keepdims=True), alone(90))
    assert found == pytest.approx(items)


def test_clusters_by_the_thousand_are_as_good_as_normal():
    values_SN = np.random.default_rng(4).exponential(1.0, (1, 5000))
    found = s.hierarchical_interval(values_SN, alone(5000))
    half = 1.96 * values_SN.std() / math.sqrt(5000)
    assert (found.value - found.low, found.high - found.value) == pytest.approx(
        (half, half), rel=0.01
    )


@pytest.mark.parametrize(
    ("values_SN", "value"),
    [
        (np.ones((3, 1)), 1.0),  # one item
        (np.full((3, 20), 0.37), 0.37),  # all alike, and no counts: nothing to judge by
        (np.full((2, 5), NAN), NAN),
        (np.zeros((3, 0)), NAN),
    ],
)
def test_where_nothing_can_be_said_nothing_is_said(values_SN, value):
    found = s.hierarchical_interval(values_SN, alone(values_SN.shape[1]))
    assert found == pytest.approx((value, NAN, NAN, NAN), nan_ok=True)
    assert s.verdict(found, found.p) == "not distinguishable"


def test_one_passage_with_many_questions_says_nothing_about_others():
    correct_SN = np.tile([0.0, 1.0], (3, 10))
    same = ["passage"] * 20
    assert math.isnan(s.hierarchical_interval(correct_SN, same).low)
    assert math.isnan(s.share_interval(correct_SN, same).low)
    assert not s.clearly_above(correct_SN, same, 0.1)


def test_missing_scores_leave_out_the_seed_or_the_item():
    values_SN = np.random.default_rng(5).normal(0.0, 1.0, (3, 40))
    holes_SN = np.vstack((values_SN, np.full((1, 40), NAN)))
    holes_SN[1, 7] = NAN
    kept = np.arange(40) != 7
    expected = s.hierarchical_interval(values_SN[:, kept], alone(39))
    assert s.hierarchical_interval(holes_SN, alone(40)) == expected


def test_no_change_at_all_leaves_room_for_one_item():
    """Frozen arms: Agresti and Min's interval without discordant pairs is 0 +- 1.96 / (N + 2)."""
    found = s.hierarchical_interval(np.zeros((3, 98)), alone(98))
    assert found == pytest.approx((0.0, -0.0196, 0.0196, 1.0), abs=4e-4)


@pytest.mark.parametrize("num_seeds", [1, 3])
def test_all_right_is_not_certainty(num_seeds):
    correct_SN = np.ones((num_seeds, 50))
    square = 1.959963984540054**2
    expected = (1.0, 50 / (50 + square), 1.0)  # Wilson's lower end at 50 of 50
    assert s.share_interval(correct_SN, alone(50)) == pytest.approx(expected)
    assert s.share_interval(1 - correct_SN, alone(50)) == pytest.approx(
        (0.0, 0.0, square / (50 + square))
    )
    # ten people all right: of ten, not of fifty
    assert s.share_interval(correct_SN, alone(50) // 5).low == pytest.approx(10 / (10 + square))


def test_a_share_of_one_model_gets_wilsons_interval():
    found = s.share_interval(rights(180, 200), alone(200))
    expected = stats.binomtest(180, 200).proportion_ci(method="wilson")
    assert found == pytest.approx((0.9, expected.low, expected.high), abs=0.002)


def test_shares_stay_between_none_and_all():
    correct_SN = np.vstack((rights(40, 40), rights(40, 40), rights(30, 40)))
    found = s.share_interval(correct_SN, alone(40))
    assert 0 < found.low < 0.75 and 0.97 < found.high <= 1


def test_a_constant_answer_is_not_above_the_majority_and_retains_nothing():
    """BoolQ, 61.87% before and 62.11% after, of 3270 items of which 2033 (62.17%) are "yes".

    A model that says "no" 110 times and is right in 50 of them has 61.87%; 22 times and 10, 62.11%.
    """
    num_items, majority = 3270, 2033 / 3270
    before_SN, after_SN = rights(2033, num_items), rights(2033, num_items)
    before_SN[0, 0:60], before_SN[0, 2100:2150] = 0.0, 1.0
    after_SN[0, 100:112], after_SN[0, 2200:2210] = 0.0, 1.0
    assert round(100 * before_SN.mean(), 2) == 61.87
    assert round(100 * after_SN.mean(), 2) == 62.11
    passage_N = alone(num_items) // 2

    for correct_SN in (before_SN, after_SN):
        assert not s.clearly_above(correct_SN, passage_N, majority)
        found = s.share_interval(correct_SN, passage_N)
        assert found.low < majority < found.high
    assert math.isnan(retention(before_SN, after_SN, passage_N, majority).value)
    change = s.hierarchical_interval(after_SN - before_SN, passage_N)
    assert change.value == pytest.approx(8 / 3270)
    assert change.low < 0 < change.high
    assert s.verdict(change, change.p) == "not distinguishable"
    assert s.mcnemar_exact(before_SN[0], after_SN[0]) > 0.05


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: s.hierarchical_interval(np.ones(4), alone(4)), "need"),
        (lambda: s.hierarchical_interval(np.ones((2, 4)), alone(3)), "need"),
        (lambda: s.hierarchical_interval(np.full((2, 4), math.inf), alone(4)), "infinite"),
        (lambda: s.hierarchical_interval(np.ones((2, 4)), alone(4), num_draws=10), "10 draws"),
        (lambda: s.share_interval(np.full((2, 4), 1.5), alone(4)), "between 0 and 1"),
        (
            lambda: s.difference_in_differences(*[np.ones((3, 4))] * 3, np.ones((2, 4)), alone(4)),
            "cannot be paired",
        ),
        (lambda: s.mcnemar_exact(np.ones(3), np.ones(4)), "cannot be paired"),
        (lambda: s.mcnemar_exact(np.ones(3), np.full(3, 0.5)), "0 and 1"),
        (lambda: s.churn(np.ones((1, 3)), np.ones((1, 4)), alone(3)), "cannot be paired"),
        (lambda: s.churn(np.ones((1, 3)), np.full((1, 3), 2.0), alone(3)), "0 and 1"),
    ],
)
def test_what_cannot_be_computed_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_inputs_are_left_alone():
    rng = np.random.default_rng(9)
    tables = [(rng.random((3, 30)) < 0.6).astype(float) for _ in range(4)]
    tables[0][1, 4] = NAN
    cluster_N = np.arange(30) // 3
    p_values = [0.2, 0.01]
    kept = [table.copy() for table in tables], cluster_N.copy(), p_values.copy()
    for table in tables:
        table.setflags(write=False)
    cluster_N.setflags(write=False)

    s.hierarchical_interval(tables[0], cluster_N)
    s.share_interval(tables[0], cluster_N)
    s.clearly_above(tables[0], cluster_N, 0.5)
    s.difference_in_differences(*tables, cluster_N)
    s.churn(tables[0], tables[1], cluster_N)
    s.mcnemar_exact(tables[0][0], tables[1][0])
    s.holm(p_values)
    retention(tables[0], tables[1], cluster_N, 0.2)

    for table, copy in zip(tables, kept[0], strict=True):
        np.testing.assert_array_equal(table, copy)
    np.testing.assert_array_equal(cluster_N, kept[1])
    assert p_values == kept[2]


def test_statistics_need_neither_torch_nor_the_slow_part_of_scipy():
    program = (
        "import sys, evals.statistics.inference, evals.statistics.savings;"
        "sys.exit('torch' in sys.modules or 'scipy.stats' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
