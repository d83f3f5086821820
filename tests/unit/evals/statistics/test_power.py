"""What a study can see, against Student's t by hand and against simulations of the report's test.

Measured with 4,000 studies per setting (known to 0.8 points) of 1,000 draws each; the tests take
fewer. Power in percent, seeds x items, "rights" 0 or 1 before and after:

|           | bits, 3 x 200 | 5 x 50 | 8 x 400 | 5 x 50 clusters of 6 |
| predicted | 80.9          | 49.8   | 54.1    | 75.3                 |
| simulated | 81.1          | 50.0   | 51.9    | 75.4                 |

|           | rights, 3 x 200 | 5 x 200 | 5 x 50 clusters of 6 |
| predicted | 70.3            | 71.0    | 74.7                 |
| simulated | 71.9            | 70.8    | 73.8                 |

At the edges, 1,500 studies each (1.2 points), for predictions of 30 and 80: without any part of the
seeds 31.8, 82.7; nothing but rest, 3 seeds 29.6, 79.1, 8 seeds 31.4, 80.9; seeds alone 31.1, 77.7;
10 clusters of 6 30.5, 79.8; items alone 27.9, 79.5.
"""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit
from scipy.stats import nct, t

from evals.statistics.inference import difference_in_differences, verdict
from evals.statistics.power import (
    Variances,
    mean_variances,
    power_of,
    seeds_needed,
    smallest_detectable,
    variances_of,
    variances_over_seeds,
)

NUM_STUDIES = 600
BITS = Variances(seeds=0.05**2, items=0.1, rest=0.5)
SETTINGS = {  # seeds, items, items per cluster, what is measured, effect (of rights: in logits)
    "bits, 3 x 200": (3, 200, 1, "bits", 0.23),
    "bits, 5 x 50": (5, 50, 1, "bits", 0.15),
    "bits, 8 x 400": (8, 400, 1, "bits", 0.06),
    "bits, 5 x 50 clusters of 6": (5, 300, 6, "bits", 0.15),
    "rights, 3 x 200": (3, 200, 1, "rights", 1.5),
    "rights, 5 x 200": (5, 200, 1, "rights", 0.8),
    "rights, 5 x 50 clusters of 6": (5, 300, 6, "rights", 0.8),
}


def bits(rng, num_seeds, num_items, size, effect):
    """The four tables of a study, in bits; the arm's last one has all that differs."""
    items_N = np.repeat(rng.standard_normal(num_items // size), size) * math.sqrt(BITS.items)
    rest_SN = rng.standard_normal((num_seeds, num_items)) * math.sqrt(BITS.rest)
    seeds_S = rng.standard_normal((num_seeds, 1)) * math.sqrt(BITS.seeds)
    nothing = np.zeros((num_seeds, num_items))
    return nothing, effect + seeds_S + items_N + rest_SN, nothing, nothing


def rights(rng, num_seeds, num_items, size, effect):
    """0 or 1, before and after: the base's logits fall by 2, the arm's by ``effect`` less."""

    def noise(spread):
        own_N, shared_N = rng.standard_normal(num_items), rng.standard_normal(num_items // size)
        return spread * (own_N + np.repeat(shared_N, size)) / math.sqrt(2)

    items_N, tables = noise(1.0), []
    for gain in (effect, 0.0):
        lost_SN = 2 - gain + 0.3 * rng.standard_normal((num_seeds, 1)) + noise(0.5)
        for logit in (1 + items_N, 1 + items_N - lost_SN):
            tables.append((rng.random((num_seeds, num_items)) < expit(logit)).astype(float))
    return tables


def simulated(setting, *, num_studies=NUM_STUDIES, num_draws=1000):
    """Share of studies with a verdict, and what is predicted of it: from the mean difference and
    the mean variances of those very studies."""
    num_seeds, num_items, size, measured, effect = SETTINGS[setting]
    rng = np.random.default_rng(7)
    cluster_N = np.arange(num_items) // size
    seen, means, found = 0, [], []
    for study in range(num_studies):
        tables = (bits if measured == "bits" else rights)(rng, num_seeds, num_items, size, effect)
        change = difference_in_differences(
            *tables[:2], *tables[2:], cluster_N, num_draws=num_draws, seed=study % 4
        )
        seen += verdict(change, change.p) != "not distinguishable"
        means.append(change.value)
        found.append(variances_of((tables[1] - tables[0]) - (tables[3] - tables[2]), cluster_N))
    truth, variances = float(np.mean(means)), mean_variances(found)
    if measured == "bits":
        truth, variances = effect, Variances(BITS.seeds, BITS.items * size, BITS.rest, size)
    return seen / num_studies, power_of(truth, variances, num_seeds, num_items), variances


@pytest.mark.parametrize("setting", SETTINGS)
def test_predicted_power_is_that_of_the_reports_test(setting):
    """Within 5 points; what so many studies show is known to 2 points, of which two are added."""
    seen, predicted, _ = simulated(setting)
    assert 0.3 < seen < 0.9, "where power is near 0 or 1, any prediction is right"
    assert predicted == pytest.approx(seen, abs=0.05 + 2 * math.sqrt(0.25 / NUM_STUDIES))


def test_variances_of_studies_are_those_they_were_made_with():
    """Mean of 200 tables; 8 seeds, 50 clusters of 6, so that a cluster's mean tells its item."""
    rng, cluster_N = np.random.default_rng(0), np.arange(300) // 6
    found = [variances_of(bits(rng, 8, 300, 6, 0.3)[1], cluster_N) for _ in range(200)]
    mean = mean_variances(found)
    assert mean.seeds == pytest.approx(BITS.seeds, rel=0.15)
    assert mean.items == pytest.approx(6 * BITS.items, rel=0.05)
    assert mean.rest == pytest.approx(BITS.rest, rel=0.05)
    assert mean.items_per_cluster == 6


def test_variances_by_hand():
    """Means of seeds 1, 3 and of items 1, 3: squares 2 and 2, nothing left over; with 4 instead of
    4 + 2, a rest of 1 in every cell: MS_interaction is 4 x 1, MS_seeds (3 - 1)^2."""
    added = variances_of(np.array([[0.0, 2.0], [2.0, 4.0]]), [0, 1])
    assert added == Variances(seeds=2.0, items=2.0, rest=0.0)
    crossed = variances_of(np.array([[0.0, 0.0], [0.0, 4.0]]), [0, 1])
    assert crossed == Variances(seeds=0.0, items=0.0, rest=4.0)


def test_what_tells_no_variance():
    assert variances_of(np.array([[0.0, 1.0]]), [0, 1]) is None  # one seed
    assert variances_of(np.array([[0.0, 1.0], [1.0, 1.0]]), [0, 0]) is None  # one cluster
    assert variances_of(np.ones((3, 4)), range(4)) is None
    assert variances_over_seeds([1.0]) is None and variances_over_seeds([1.0, 1.0]) is None
    assert variances_over_seeds([1.0, 3.0]) == Variances(2.0, 0.0, 0.0)
    nothing = Variances(0.0, 0.0, 0.0)
    assert math.isnan(smallest_detectable(nothing, 3, 10)) and math.isnan(
        power_of(1, nothing, 3, 10)
    )


@pytest.mark.parametrize("num_seeds", [3, 5, 20])
def test_seeds_alone_are_students_t(num_seeds):
    """Effects of 1 and 2 standard deviations, by the noncentral t distribution."""
    for effect in (1.0, 2.0):
        shift, limit = effect * math.sqrt(num_seeds), t.ppf(0.975, num_seeds - 1)
        dof = num_seeds - 1
        expected = nct.sf(limit, dof, shift) + nct.cdf(-limit, dof, shift)
        found = power_of(effect, Variances(1.0, 0.0, 0.0), num_seeds, 1)
        assert found == pytest.approx(expected, abs=0.003)


def test_items_alone_are_a_normal_test():
    """z of 0.975 and of 0.8: 1.960 + 0.842, times the standard error 1 / sqrt(10,000)."""
    found = smallest_detectable(Variances(0.0, 1.0, 0.0), 5, 10_000)
    assert found == pytest.approx(0.02802, rel=0.002)


def test_seeds_needed_is_the_first_number_that_suffices():
    needed = seeds_needed(0.1, BITS, 200)
    assert power_of(0.1, BITS, needed - 1, 200) < 0.8 <= power_of(0.1, BITS, needed, 200)
    assert seeds_needed(10.0, BITS, 200) == 3
    assert seeds_needed(0.01, BITS, 200) is None  # the items' own error is 0.022
    with pytest.raises(ValueError, match="above 0"):
        seeds_needed(0.0, BITS, 200)


def test_fewer_than_three_seeds_cannot_tell():
    for num_seeds in (1, 2):
        assert smallest_detectable(BITS, num_seeds, 10**6) == math.inf
        assert power_of(1e6, BITS, num_seeds, 10**6) == 0


variance = st.floats(0, 1)


@settings(max_examples=12, deadline=None)
@given(variance, variance, variance, st.integers(3, 30), st.integers(12, 500))
def test_more_seeds_or_items_never_see_less(seeds, items, rest, num_seeds, num_items):
    found = Variances(seeds + 1e-3, items, rest, 6.0)
    least = smallest_detectable(found, num_seeds, num_items)
    assert power_of(least, found, num_seeds, num_items) == pytest.approx(0.8, abs=1e-6)
    grids = 1.002  # two grids of draws differ by less
    assert smallest_detectable(found, num_seeds + 1, num_items) <= least * grids
    assert smallest_detectable(found, num_seeds, 2 * num_items) <= least * grids
    assert smallest_detectable(found, num_seeds, math.inf) <= least * grids
    assert smallest_detectable(found, num_seeds, num_items, level=0.01) > least
    scaled = Variances(100 * found.seeds, 100 * items, 100 * rest, 6.0)  # any unit
    assert smallest_detectable(scaled, num_seeds, num_items) == pytest.approx(10 * least, rel=1e-6)
