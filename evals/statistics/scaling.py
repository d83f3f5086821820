"""Loss over training compute, and how many times the compute a baseline needs for an arm's loss.

A saturating power law, L(C) = E + A C^-alpha, fitted as Hoffmann et al. (arXiv 2203.15556, approach
3) do: Huber's loss of the residuals of log L, in log-sum-exp form, the best of several starts.
Resampling speaks for other seeds; tests/unit/evals/statistics/test_scaling_coverage.py has the
coverage of its intervals as measured.

P points (a size and a seed), R starts or resamplings.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.special import fdtrc, stdtrit

from evals.statistics.inference import Interval
from evals.statistics.intervals import Z

MIN_SIZES = 4  # three parameters: with fewer, nothing shows whether the curve is one
NUM_DRAWS = 1000
# of the exponent's interval: a curve that may as well saturate soon as never is not known
WIDEST_RATIO = 4.0
MISFIT = 0.01  # p below which sizes lie off any such curve by more than their seeds do
EXPONENTS = (0.01, 3.0)  # what the fit may choose; an interval that ends there says nothing
_DEEPEST = 7.0  # nats of log E below the lowest loss: as good as no floor
_EFFICIENT = 1.345  # standard deviations beyond which a residual counts linearly (Huber, 1964)
_LEAST_HUBER = 1e-3  # Hoffmann et al.'s, in nats of log L
_MAX_STEPS = 100


class PowerLaw(NamedTuple):
    """L(C) = floor + scale * (C / unit)^-exponent; each a number, or (R,) of as many curves."""

    floor: np.ndarray | float
    scale: np.ndarray | float  # of the loss above the floor, at C = unit
    exponent: np.ndarray | float
    unit: float

    def loss(self, compute: float) -> np.ndarray:
        return np.asarray(self.floor + self.scale * (compute / self.unit) ** -self.exponent)

    def compute(self, loss: np.ndarray | float) -> np.ndarray:
        """That it takes to come down to ``loss``; infinite at or below the floor."""
        above = np.maximum(np.asarray(loss) - self.floor, 0.0)
        with np.errstate(divide="ignore", over="ignore"):
            return np.asarray(self.unit * (self.scale / above) ** (1 / self.exponent))


@dataclass(frozen=True)
class CurveFit:
    """A fitted curve; its intervals are NaN where there is one seed of every size."""

    law: PowerLaw
    exponent: Interval
    floor: Interval
    draws: PowerLaw | None  # fits of resampled seeds
    design: tuple[tuple[float, int], ...]  # compute and number of seeds of each size


class Refusal(NamedTuple):
    """Why nothing is said."""

    reason: str


def fit_curve(
    losses: Mapping[float, Sequence[float]], *, num_draws: int = NUM_DRAWS, seed: int = 0
) -> CurveFit | Refusal:
    """The curve through ``losses``: compute (of any unit, above 0) -> the loss of every seed.

    Intervals resample seeds: every size keeps its mean, and draws as many deviations as it has
    seeds from those of all sizes together. Deviations of three seeds are too few and too small;
    pooled they are scaled to what their degrees of freedom leave open, sqrt(P / (P - sizes)) for
    the means that were taken off and Student's t over the normal quantile for the variance.

    Returns:
        A refusal with fewer than ``MIN_SIZES`` sizes; where seeds leave the exponent open (its
        interval meets a bound or spans a factor above ``WIDEST_RATIO``); where sizes lie off the
        curve by more than seeds explain.

    Raises:
        ValueError: for compute or losses that are not above 0 and finite.
    """
    sizes = sorted(size for size in losses if len(losses[size]))
    log_loss = [np.log(np.asarray(losses[size], dtype=float)) for size in sizes]
    log_compute = np.log(np.asarray(sizes, dtype=float))
    if not all(np.isfinite(found).all() for found in (log_compute, *log_loss)):
        raise ValueError("compute and losses must be finite numbers above 0")
    if len(sizes) < MIN_SIZES:
        return Refusal(f"{len(sizes)} sizes; a curve of three parameters needs {MIN_SIZES}")
    size_P = np.repeat(np.arange(len(sizes)), [len(found) for found in log_loss])
    y_P, means = np.concatenate(log_loss), np.array([found.mean() for found in log_loss])
    own_P = y_P - means[size_P]
    degrees = len(y_P) - len(sizes)
    variance = float((own_P**2).sum()) / degrees if degrees else 0.0
    delta = max(_LEAST_HUBER, _EFFICIENT * math.sqrt(variance))
    x_P = (log_compute - log_compute.mean())[size_P]
    unit = float(np.exp(log_compute.mean()))
    best = _fit(x_P, y_P[None], _starts(x_P, y_P), delta)
    floor, scale, alpha = (float(part) for part in np.exp(best[0]))
    law = PowerLaw(floor, scale, alpha, unit)
    design = tuple((size, len(found)) for size, found in zip(sizes, log_loss, strict=True))
    if not variance:
        unknown = math.nan, math.nan
        return CurveFit(law, Interval(alpha, *unknown), Interval(floor, *unknown), None, design)
    off = np.log([float(law.loss(size)) for size in sizes]) - means
    misfit = float((np.bincount(size_P) * off**2).sum()) / (len(sizes) - 3)
    p = float(fdtrc(len(sizes) - 3, degrees, misfit / variance))
    if p < MISFIT:
        return Refusal(
            f"the sizes lie off any such curve by more than their seeds explain (p = {p:.1g})"
        )
    wider = math.sqrt(len(y_P) / degrees) * float(stdtrit(degrees, 0.975)) / Z
    picks_RP = np.random.default_rng(seed).integers(len(y_P), size=(num_draws, len(y_P)))
    drawn = _fit(x_P, means[size_P] + wider * own_P[picks_RP], best, delta * wider)
    floor_R, scale_R, alpha_R = np.exp(drawn).T
    exponent = _interval(alpha, alpha_R)
    low, high = exponent.low, exponent.high
    if low <= 1.01 * EXPONENTS[0] or high >= 0.99 * EXPONENTS[1] or high > WIDEST_RATIO * low:
        return Refusal(f"the seeds leave the exponent open, from {low:.2g} to {high:.2g}")
    draws = PowerLaw(floor_R, scale_R, alpha_R, unit)
    return CurveFit(law, exponent, _interval(floor, floor_R), draws, design)


def compute_to_match(arm: CurveFit, baseline: CurveFit, compute: float) -> Interval:
    """How many times ``compute`` the baseline needs for the loss that ``arm`` has there.

    Resamplings of curves with the same numbers of seeds are paired, as seeds share their data.

    Returns:
        Infinite where the baseline's floor lies above that loss; NaN ends without several seeds.
    """
    value = float(baseline.law.compute(arm.law.loss(compute))) / compute
    if arm.draws is None or baseline.draws is None:
        return Interval(value, math.nan, math.nan)
    return _interval(value, baseline.draws.compute(arm.draws.loss(compute)) / compute)


def _interval(value: float, draws_R: np.ndarray) -> Interval:
    draws_R = np.sort(draws_R)
    k = math.floor(0.025 * (len(draws_R) + 1))
    return Interval(value, float(draws_R[k - 1]), float(draws_R[-k]))


def _starts(x_P: np.ndarray, y_P: np.ndarray) -> np.ndarray:
    """(R, 3): log E, log of the loss above it at the middle size, log alpha."""
    middle = float(np.exp(y_P.mean()))
    lowest = float(np.exp(y_P.min()))
    return np.array(
        [
            (math.log(share * lowest), math.log(middle - share * lowest + 1e-9), math.log(exponent))
            for share in (0.02, 0.3, 0.6, 0.8, 0.95)
            for exponent in (0.05, 0.15, 0.4, 1.0)
        ]
    )


def _fit(x_P: np.ndarray, y_RP: np.ndarray, starts_K3: np.ndarray, delta: float) -> np.ndarray:
    """(R, 3): log E, log of the loss above it at x = 0 and log alpha, which minimise Huber's loss
    for every row of ``y_RP``, the best that ``starts_K3`` lead to; by Levenberg and Marquardt."""
    theta = np.tile(starts_K3, (len(y_RP), 1))
    y = np.repeat(y_RP, len(starts_K3), 0)
    lowest, alpha = y.min(1, keepdims=True), np.log(EXPONENTS)
    low = np.concatenate([lowest - _DEEPEST, lowest - 50, 0 * lowest + alpha[0]], 1)
    high = np.concatenate([lowest, lowest + 50, 0 * lowest + alpha[1]], 1)
    theta = np.clip(theta, low, high)
    loss = _objective(theta, x_P, y, delta)[0]
    damping, left = np.full(len(y), 1e-3), np.arange(len(y))
    for _ in range(_MAX_STEPS):
        _, residual, jacobian = _objective(theta[left], x_P, y[left], delta)
        weighted = jacobian * np.minimum(1, delta / np.maximum(np.abs(residual), delta))[..., None]
        hessian = weighted.transpose(0, 2, 1) @ jacobian
        gradient = weighted.transpose(0, 2, 1) @ residual[..., None]
        diagonal = np.einsum("rii->ri", hessian) + 1e-12
        hessian += (damping[left, None] * diagonal)[..., None] * np.eye(3)
        step = np.clip(np.linalg.solve(hessian, gradient)[..., 0], -2, 2)
        there = np.clip(theta[left] + step, low[left], high[left])
        then = _objective(there, x_P, y[left], delta)[0]
        gain = loss[left] - then
        better = left[gain > 0]
        theta[better], loss[better] = there[gain > 0], then[gain > 0]
        damping[left] *= np.where(gain > 0, 0.1, 10.0)
        settled = (np.abs(gain) <= 1e-7 * loss[left]) | (damping[left] > 1e6)
        if not len(left := left[~settled]):
            break
    best = loss.reshape(len(y_RP), -1).argmin(1)
    return theta.reshape(len(y_RP), -1, 3)[np.arange(len(y_RP)), best]


def _objective(
    theta: np.ndarray, x_P: np.ndarray, y: np.ndarray, delta: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Huber's loss (R,), residuals of log L (R, P), and the derivatives of the model (R, P, 3)."""
    slope = np.exp(theta[:, 2:])
    above = theta[:, 1:2] - slope * x_P
    model = np.logaddexp(theta[:, :1], above)
    residual = y - model
    size = np.abs(residual)
    loss = np.where(size <= delta, residual**2 / 2, delta * (size - delta / 2)).sum(1)
    share = np.exp(above - model)
    return loss, residual, np.stack([1 - share, share, -share * slope * x_P], 2)
