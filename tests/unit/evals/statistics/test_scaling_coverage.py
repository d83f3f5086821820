"""Whether intervals of fitted curves hold what they say, by simulation of ladders with known laws.

Measured with 500 studies of two arms per case and 400 resamplings (shares of exponents and floors
are known to 0.7%, of compute to match to 1%), in percent:

| case                  | exponent | floor | compute to match | refused |
| --------------------- | -------- | ----- | ---------------- | ------- |
| 4 sizes               | 95.1     | 95.6  | 95.9             | 1.2     |
| 5 sizes               | 95.9     | 96.2  | 95.1             | 0.8     |
| seeds apart           | 95.0     | 95.3  | 95.7             | 1.1     |
| 5 seeds               | 95.3     | 95.5  | 94.0             | 1.4     |
| arms alike over seeds | 96.5     | 95.7  | 96.5             | 1.3     |
| noise falls with size | 94.1     | 96.2  | 99.4             | 0.8     |
| near the floor        | 96.2     | 96.1  | 95.3             | 0.6     |

Noise is pooled over sizes: where it falls to a third from the smallest to the largest, whose loss
is to be matched, the interval is too wide. And refusing is a choice by what was found: at "4 sizes"
with noise of 3%, 12.5% are refused, and intervals of the others hold 92.4, 92.9 and 94.4% (120
studies). A ``WIDEST_RATIO`` of 3 would refuse 65% there, and leave the others at 82, 82 and 86%.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from evals.statistics.scaling import CurveFit, PowerLaw, compute_to_match, fit_curve

NUM_STUDIES = 50  # a share of 95% is then known to 3.1%, of the 100 curves of each case to 2.2%
NUM_DRAWS = 160


@dataclass(frozen=True)
class Case:
    """A baseline and an arm whose loss above the floor is ``gap`` times the baseline's."""

    floor: float
    scale: float  # of the loss above the floor at the smallest size
    exponent: float
    num_sizes: int  # each of four times the compute of the one before
    num_seeds: int
    noise: float  # standard deviation over seeds, of the log of the loss
    gap: float = 0.93
    shared: float = 0.0  # correlation of the arms' losses over seeds: the same data, in one order
    falling: bool = False  # noise from 1.5 times down to half with size


CASES = {
    "4 sizes": Case(1.5, 2.5, 0.25, 4, 3, 0.003),
    "5 sizes": Case(1.5, 2.5, 0.25, 5, 3, 0.003),
    "seeds apart": Case(0.5, 3.0, 0.4, 4, 3, 0.01),
    "5 seeds": Case(0.5, 3.0, 0.4, 5, 5, 0.01),
    "arms alike over seeds": Case(1.5, 2.5, 0.25, 4, 3, 0.005, shared=0.9),
    "noise falls with size": Case(1.5, 2.5, 0.25, 5, 3, 0.005, falling=True),
    "near the floor": Case(1.5, 2.5, 0.5, 5, 3, 0.004, gap=0.8),
}


def truth(case: Case) -> tuple[PowerLaw, PowerLaw, np.ndarray]:
    baseline = PowerLaw(case.floor, case.scale, case.exponent, 1e15)
    compute = 1e15 * 4.0 ** np.arange(case.num_sizes)
    return baseline, baseline._replace(scale=case.gap * case.scale), compute


def coverage(
    case: Case, num_studies: int = NUM_STUDIES, num_draws: int = NUM_DRAWS
) -> dict[str, float]:
    """Shares in percent: of intervals that hold the exponent, the floor and the compute to match,
    and of curves that were refused."""
    rng = np.random.default_rng(7)
    baseline, arm, compute = truth(case)
    factor = float(baseline.compute(arm.loss(compute[-1]))) / compute[-1]
    spread = case.noise * (np.linspace(1.5, 0.5, case.num_sizes) if case.falling else 1.0)
    held: dict[str, list[bool]] = {"exponent": [], "floor": [], "match": []}
    refused = 0
    for study in range(num_studies):
        common = rng.standard_normal((case.num_seeds, case.num_sizes))
        fits = []
        for law in (baseline, arm):
            own = rng.standard_normal((case.num_seeds, case.num_sizes))
            noise = np.sqrt(case.shared) * common + np.sqrt(1 - case.shared) * own
            losses = law.loss(compute) * np.exp(spread * noise)
            # a few resamplings in turn: one alone would lend its own luck to all studies
            table = dict(zip(compute.tolist(), losses.T, strict=True))
            fits.append(fit_curve(table, num_draws=num_draws, seed=study % 4))
        for fit in fits:
            if isinstance(fit, CurveFit):
                held["exponent"].append(fit.exponent.low <= case.exponent <= fit.exponent.high)
                held["floor"].append(fit.floor.low <= case.floor <= fit.floor.high)
            else:
                refused += 1
        first, second = fits
        if isinstance(first, CurveFit) and isinstance(second, CurveFit):
            found = compute_to_match(second, first, compute[-1])
            held["match"].append(found.low <= factor <= found.high)
    shares = {what: 100 * float(np.mean(hits)) for what, hits in held.items()}
    return shares | {"refused": 50 * refused / num_studies}


@pytest.mark.parametrize("name", ["4 sizes", "seeds apart", "5 seeds", "arms alike over seeds"])
def test_intervals_hold_the_truth_95_times_in_100(name: str) -> None:
    """Within 3, and what chance allows."""
    shares = coverage(CASES[name])
    assert shares["refused"] < 10
    for what, num in (("exponent", 2), ("floor", 2), ("match", 1)):
        chance = 100 * np.sqrt(0.95 * 0.05 / (num * NUM_STUDIES))
        assert shares[what] == pytest.approx(95, abs=3 + 1.5 * chance), what
