"""Curves through losses whose law is known, and what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import minimize

from evals.statistics.scaling import (
    CurveFit,
    Interval,
    PowerLaw,
    Refusal,
    compute_to_match,
    fit_curve,
)

SIZES = [1e15 * 4.0**step for step in range(5)]
LAW = PowerLaw(1.5, 2.5, 0.25, SIZES[0])


def ladder(
    law: PowerLaw, *, noise: float = 0.0, seeds: int = 3, sizes: list[float] | None = None
) -> dict[float, list[float]]:
    rng = np.random.default_rng(1)
    return {
        size: [
            float(law.loss(size)) * math.exp(noise * rng.standard_normal()) for _ in range(seeds)
        ]
        for size in sizes or SIZES
    }


def fitted(losses: dict[float, list[float]]) -> CurveFit:
    found = fit_curve(losses, num_draws=200)
    assert isinstance(found, CurveFit), found
    return found


def reason(losses: dict[float, list[float]]) -> str:
    found = fit_curve(losses, num_draws=200)
    assert isinstance(found, Refusal), found
    return found.reason


@pytest.mark.parametrize("floor", [0.05, 1.5, 3.0])
@pytest.mark.parametrize("exponent", [0.08, 0.25, 0.9])
def test_a_law_without_noise_is_found(floor: float, exponent: float) -> None:
    law = PowerLaw(floor, 2.5, exponent, SIZES[0])
    found = fitted(ladder(law, seeds=1)).law
    assert found.exponent == pytest.approx(exponent, rel=1e-3)
    assert found.floor == pytest.approx(floor, rel=1e-2)
    at_first = found.scale * (SIZES[0] / found.unit) ** -found.exponent
    assert at_first == pytest.approx(2.5, rel=1e-2)


def test_the_unit_of_compute_changes_nothing() -> None:
    losses = ladder(LAW, noise=0.003)
    hours = {size / 1e17: of_seeds for size, of_seeds in losses.items()}
    one, other = fitted(losses), fitted(hours)
    assert other.exponent == pytest.approx(one.exponent) and other.floor == pytest.approx(one.floor)


def test_no_other_curve_is_nearer_by_hubers_loss() -> None:
    """An optimizer of another kind, from the truth, on the same objective written out."""
    losses = ladder(LAW, noise=0.01)
    losses[SIZES[1]][0] *= 1.15  # a seed that went wrong
    y = np.log([losses[size] for size in SIZES])
    spread = math.sqrt(((y - y.mean(1, keepdims=True)) ** 2).sum() / (y.size - len(SIZES)))
    delta = 1.345 * spread

    def objective(theta: np.ndarray) -> float:
        curve = np.exp(theta[0]) + np.exp(theta[1] - theta[2] * np.log(np.array(SIZES) / SIZES[0]))
        off = np.abs(y - np.log(curve)[:, None])
        return 1e4 * float(np.where(off <= delta, off**2 / 2, delta * (off - delta / 2)).sum())

    truth = [math.log(LAW.floor), math.log(LAW.scale), LAW.exponent]
    best = minimize(objective, truth, method="L-BFGS-B", options={"ftol": 1e-14, "gtol": 1e-10})
    found = fitted(losses).law
    scale = found.scale * (SIZES[0] / found.unit) ** -found.exponent
    ours = [math.log(found.floor), math.log(scale), found.exponent]
    assert objective(np.array(ours)) <= best.fun * (1 + 1e-4)
    assert found.exponent == pytest.approx(best.x[2], rel=0.01)


def test_a_baseline_that_needs_so_many_times_the_compute() -> None:
    """L = E + A C^-a and E + g A C^-a: g^(-1/a) times, whatever the size."""
    better = LAW._replace(scale=0.9 * LAW.scale)
    arm, baseline = fitted(ladder(better, seeds=1)), fitted(ladder(LAW, seeds=1))
    for size in SIZES:
        match = compute_to_match(arm, baseline, size)
        assert match.value == pytest.approx(0.9 ** (-1 / 0.25), rel=1e-2)
        assert math.isnan(match.low) and math.isnan(match.high)  # one seed
    assert compute_to_match(baseline, arm, SIZES[-1]).value == pytest.approx(0.9**4, rel=1e-2)


def test_a_floor_above_the_loss_is_not_reached_by_any_compute() -> None:
    deep = PowerLaw(1.0, 2.5, 0.5, SIZES[0])
    high = PowerLaw(1.6, 2.0, 0.5, SIZES[0])
    arm, baseline = fitted(ladder(deep, noise=0.003)), fitted(ladder(high, noise=0.003))
    match = compute_to_match(arm, baseline, SIZES[-1])
    assert match.value == math.inf and match.high == math.inf
    assert match.low > 10
    assert compute_to_match(baseline, arm, SIZES[-1]).value < 1


def test_the_same_losses_need_the_same_compute() -> None:
    """Seeds are paired: an arm against itself is known exactly."""
    fit = fitted(ladder(LAW, noise=0.01))
    assert compute_to_match(fit, fit, SIZES[-1]) == pytest.approx(Interval(1, 1, 1))


def test_more_seeds_and_less_noise_say_more() -> None:
    def width(noise: float, seeds: int) -> float:
        found = fitted(ladder(LAW, noise=noise, seeds=seeds)).exponent
        return found.high - found.low

    assert width(0.002, 3) < 0.6 * width(0.006, 3)
    assert width(0.006, 12) < 0.8 * width(0.006, 3)


def test_too_few_sizes_are_refused() -> None:
    assert reason(ladder(LAW, sizes=SIZES[:3])).startswith("3 sizes")
    assert reason({}).startswith("0 sizes")
    losses = ladder(LAW, sizes=SIZES[:4])
    losses[SIZES[3]] = []  # planned, not measured
    assert reason(losses).startswith("3 sizes")


def test_seeds_that_leave_the_exponent_open_are_refused() -> None:
    assert "leave the exponent open" in reason(ladder(LAW, noise=0.08, sizes=SIZES[:4]))
    flat = PowerLaw(2.0, 1e-9, 0.3, SIZES[0])  # compute changes nothing
    assert "leave the exponent open" in reason(ladder(flat, noise=0.005))


def test_sizes_off_the_curve_are_refused() -> None:
    """One size was trained badly: all its seeds are as bad."""
    losses = ladder(LAW, noise=0.003)
    losses[SIZES[2]] = [1.05 * loss for loss in losses[SIZES[2]]]
    assert "more than their seeds explain" in reason(losses)


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_what_has_no_logarithm(bad: float) -> None:
    losses = ladder(LAW)
    with np.errstate(all="ignore"), pytest.raises(ValueError, match="above 0"):
        fit_curve({**losses, SIZES[0]: [bad]})
