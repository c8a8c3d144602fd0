"""Statistics of scores of several runs, with bootstrap intervals.

Scores are arrays [R, K]: R runs (seeds) of one arm on K tasks; [R] is one task. Every statistic also takes leading axes
[..., R, K] and reduces the last two, which is what makes the bootstrap one call. The definitions are those of Agarwal et
al., "Deep Reinforcement Learning at the Edge of the Statistical Precipice" (arXiv 2108.13264), sections 4.1 to 4.3.

Whether two arms differ is decided in `vantage.study.comparison`, not by looking whether two intervals overlap.

Coverage. A percentile interval of few seeds is too narrow: the bootstrap's spread is smaller than the truth by
sqrt((R - 1) / R) and knows nothing of Student's t. `expand=True` (the default) widens the percentiles by exactly these
two factors (Hesterberg, "What Teachers Should Know about the Bootstrap", arXiv 1411.5279); `expand=False`
is the plain percentile interval of the paper above. Measured coverage in per cent of
the 95 % interval, normal scores (`python -m vantage.study.calibration`):

    seeds                     3      5     10     20
    mean, percentile       75.1   83.3   90.3   91.6
    mean, expanded         75.2   91.8   95.2   93.8
    iqm, percentile        75.1   90.2   94.2   93.8
    iqm, expanded          75.2   93.7   97.9   95.8

An interval from the bootstrap never reaches past the scores that were seen, hence what is missing at 3 seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vantage.core.errors import UserError, require

Array = NDArray[np.float64]
Statistic = Callable[[Array], Array]

RESAMPLES = 10_000
LEVEL = 0.95
FEWEST = 3  # runs for an interval: resampling 2 of them gives an interval that covers at most half of the time
_CHUNK = 1 << 22  # elements of resampled scores held at a time


class Interval(NamedTuple):
    """Statistic with the two ends of its interval; the ends are None with fewer than 3 runs."""

    value: float
    low: float | None
    high: float | None


class Band(NamedTuple):
    """Curve [M] with the ends of its pointwise interval [M]; with fewer than 3 runs the ends are the curve."""

    value: Array
    low: Array
    high: Array


def as_scores(scores: ArrayLike, what: str = "scores") -> Array:
    """Return scores as float64 [..., R, K]; [R] becomes [R, 1].

    Raises:
        UserError: there is no run, or a score is not finite (leave a crashed run out, and say that it crashed).
    """
    array = np.asarray(scores, dtype=np.float64)
    if array.ndim == 1:
        array = array[:, None]
    if array.ndim < 2 or 0 in array.shape:
        raise UserError(f"{what} have shape {array.shape}: expected [runs] or [runs, tasks] with at least one run")
    if not np.isfinite(array).all():
        raise UserError(f"{what} hold a number that is not finite; leave crashed runs out and report their number")
    return array


def mean(scores: ArrayLike) -> Array:
    """Mean of the tasks' means, over [..., R, K]."""
    return as_scores(scores).mean(axis=(-2, -1))


def iqm(scores: ArrayLike) -> Array:
    """Interquartile mean: the mean of the middle half of all R * K scores, floor(R * K / 4) dropped at either end."""
    array = as_scores(scores)
    pooled = np.sort(array.reshape(*array.shape[:-2], -1), axis=-1)
    cut = pooled.shape[-1] // 4
    return pooled[..., cut : pooled.shape[-1] - cut].mean(axis=-1)


def median(scores: ArrayLike) -> Array:
    """Median of all R * K scores."""
    return np.asarray(np.median(as_scores(scores), axis=(-2, -1)))


def median_of_tasks(scores: ArrayLike) -> Array:
    """Median over tasks of the mean over runs: what arXiv 2108.13264 calls "median". One task: the mean."""
    return np.asarray(np.median(as_scores(scores).mean(axis=-2), axis=-1))


def optimality_gap(scores: ArrayLike, target: float = 1.0, direction: str = "higher") -> Array:
    """Mean shortfall from `target`, max(target - score, 0); excess does not make up for shortfall.

    Args:
        scores: [..., R, K], in a scale that is the same for all tasks.
        target: the score that counts as solved.
        direction: "lower" takes max(score - target, 0).
    """
    sign = 1.0 if direction == "higher" else -1.0
    return np.maximum(sign * (target - as_scores(scores)), 0.0).mean(axis=(-2, -1))


def probability_of_improvement(x: ArrayLike, y: ArrayLike) -> Array:
    """P(X > Y) + P(X = Y) / 2 for a run of X and a run of Y, averaged over tasks: Mann-Whitney's U over R_x R_y.

    Args:
        x: scores [..., R_x, K].
        y: scores [..., R_y, K] on the same tasks.
    """
    x, y = as_scores(x, "scores of x"), as_scores(y, "scores of y")
    if x.shape[-1] != y.shape[-1]:
        raise UserError(f"x has {x.shape[-1]} tasks and y {y.shape[-1]}: compare on the same tasks")
    sign = np.sign(x[..., :, None, :] - y[..., None, :, :])
    return np.asarray(0.5 + 0.5 * sign.mean(axis=(-3, -2, -1)))


def bootstrap(
    scores: ArrayLike,
    statistic: Statistic = iqm,
    *,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    joint: bool = False,
    expand: bool = True,
    seed: int = 0,
) -> Interval:
    """Stratified bootstrap percentile interval of a statistic: runs are drawn with replacement within each task.

    Args:
        scores: [R, K].
        statistic: takes [..., R, K], gives [...].
        resamples: number of bootstrap samples.
        level: coverage aimed at.
        joint: draw whole runs, the same for all tasks. Right when one trained policy was scored on all K tasks (its
            scores then move together); False is right when each task had training runs of its own.
        expand: correct the percentiles for few runs (see the module); False is the plain percentile interval.
        seed: of the draws; the same seed gives the same interval.
    """
    array = as_scores(scores)
    value = float(statistic(array))
    if array.shape[-2] < FEWEST:
        return Interval(value, None, None)
    draws = _resampled([array], lambda drawn: statistic(drawn[0]), resamples, joint, seed)
    low, high = np.quantile(draws, _levels([array], level, expand), axis=0)
    return Interval(value, float(low), float(high))


def bootstrap_improvement(
    x: ArrayLike,
    y: ArrayLike,
    *,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    joint: bool = False,
    expand: bool = True,
    seed: int = 0,
) -> Interval:
    """`probability_of_improvement` of x over y with its bootstrap interval; both arms are resampled.

    The interval of two arms that do not overlap is [1, 1]: the bootstrap cannot see past the runs that it was given.
    The arguments are those of `bootstrap`.
    """
    a, b = as_scores(x, "scores of x"), as_scores(y, "scores of y")
    value = float(probability_of_improvement(a, b))
    if min(a.shape[-2], b.shape[-2]) < FEWEST:
        return Interval(value, None, None)
    draws = _resampled([a, b], lambda drawn: probability_of_improvement(*drawn), resamples, joint, seed, width=len(b))
    low, high = np.quantile(draws, _levels([a, b], level, expand), axis=0)
    return Interval(value, float(low), float(high))


def bootstrap_curve(
    curves: ArrayLike, *, resamples: int = 2_000, level: float = LEVEL, expand: bool = True, seed: int = 0
) -> Band:
    """Mean of R curves [R, M] at each of M points with its pointwise interval; whole curves are drawn."""
    array = as_scores(curves, "curves")
    middle = array.mean(axis=-2)
    if array.shape[-2] < FEWEST:
        return Band(middle, middle, middle)
    draws = _resampled([array], lambda drawn: drawn[0].mean(axis=-2), resamples, True, seed)
    # One stratum however many points: the runs are what was drawn.
    low, high = np.quantile(draws, _levels([array[:, :1]], level, expand), axis=0)
    return Band(middle, low, high)


def performance_profile(
    scores: ArrayLike,
    thresholds: ArrayLike,
    *,
    direction: str = "higher",
    resamples: int = 2_000,
    level: float = LEVEL,
    joint: bool = False,
    expand: bool = True,
    seed: int = 0,
) -> Band:
    """Share of runs whose score is above each threshold: the run-score distribution, with its pointwise interval.

    Args:
        scores: [R, K].
        thresholds: [M].
        direction: "lower" gives the share below each threshold.
        resamples, level, joint, expand, seed: as in `bootstrap`.
    """
    sign = 1.0 if direction == "higher" else -1.0
    array, taus = sign * as_scores(scores), sign * np.atleast_1d(np.asarray(thresholds, dtype=np.float64))

    def share(drawn: list[Array]) -> Array:
        return (drawn[0][..., None] > taus).mean(axis=(-3, -2))

    value = share([array])
    if array.shape[-2] < FEWEST:
        return Band(value, value, value)
    draws = _resampled([array], share, resamples, joint, seed, width=len(taus))
    low, high = np.quantile(draws, _levels([array], level, expand), axis=0)
    return Band(value, low, high)


def _resampled(
    arms: list[Array],
    statistic: Callable[[list[Array]], Array],
    resamples: int,
    joint: bool,
    seed: int,
    width: int = 1,
) -> Array:
    """Return the statistic of `resamples` bootstrap samples of the arms [R, K], in chunks that fit in memory."""
    if resamples < 1:
        raise UserError(f"resamples is {resamples}: give at least 1")
    rng = np.random.default_rng(seed)
    size = max(1, min(resamples, _CHUNK // (width * max(arm.size for arm in arms))))
    found = []
    for start in range(0, resamples, size):
        count = min(size, resamples - start)
        drawn = []
        for arm in arms:
            runs, tasks = arm.shape
            if joint or tasks == 1:
                drawn.append(arm[rng.integers(runs, size=(count, runs))])
            else:
                rows = rng.integers(runs, size=(count, runs, tasks))
                drawn.append(arm[rows, np.arange(tasks)])
        found.append(statistic(drawn))
    return np.concatenate(found)


def _levels(arms: list[Array], level: float, expand: bool) -> Array:
    """Return the two percentiles (as fractions) of the bootstrap distribution that are the interval's ends."""
    if not 0 < level < 1:
        raise UserError(f"level is {level}: give a number between 0 and 1, such as 0.95")
    tail = (1 - level) / 2
    if expand:
        stats = require("scipy.stats", "study")
        runs = min(arm.shape[-2] for arm in arms)
        freedom = sum((arm.shape[-2] - 1) * arm.shape[-1] for arm in arms)
        tail = float(stats.norm.cdf(math.sqrt(runs / (runs - 1)) * stats.t.ppf(tail, freedom)))
    return np.array([tail, 1 - tail])
