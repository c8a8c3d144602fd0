"""Tests of the difference of two arms, corrections for their number, power. Batches throughout: runs are the last axis.

scipy (`pip install 'vantage[study]'`) gives the distributions; the permutation tests are exact wherever they can be.
"""

from __future__ import annotations

import math
from functools import cache
from itertools import combinations, product
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from vantage.core.errors import UserError, require, unknown
from vantage.study.statistics import Array

Correction = Literal["holm", "benjamini-hochberg", "none"]

ALPHA = 0.05
FEWEST_SEEDS = 3
_EXACT = 200_000  # arrangements up to which a permutation test is exact
_DRAWS = 20_000  # arrangements drawn beyond that
_ROWS = 1 << 22  # elements of permuted statistics held at a time
_TIE = 1e-12  # relative to the scores: what differs by less is equal but for rounding


class TTest(NamedTuple):
    """Result of a t test on a batch [...]: effect, its standard error, degrees of freedom, two-sided p, interval."""

    effect: Array
    error: Array
    freedom: Array
    p: Array
    low: Array
    high: Array


def welch(x: ArrayLike, y: ArrayLike, alpha: float = ALPHA) -> TTest:
    """Welch's t test of the means of two independent samples, over the last axis.

    Args:
        x: [..., R_x] with R_x >= 2.
        y: [..., R_y] with R_y >= 2.
        alpha: the interval covers 1 - alpha.

    Where neither arm has any spread t is undefined: p is then the permutation test's, the smallest possible with this
    number of runs (1 if the means are equal).
    """
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    runs_x, runs_y = x.shape[-1], y.shape[-1]
    part_x, part_y = x.var(axis=-1, ddof=1) / runs_x, y.var(axis=-1, ddof=1) / runs_y
    total = part_x + part_y
    with np.errstate(invalid="ignore", divide="ignore"):
        freedom = total**2 / (part_x**2 / (runs_x - 1) + part_y**2 / (runs_y - 1))
    freedom = np.where(np.isfinite(freedom), freedom, runs_x + runs_y - 2)
    effect, scale = x.mean(axis=-1) - y.mean(axis=-1), np.maximum(np.abs(x).max(axis=-1), np.abs(y).max(axis=-1))
    return _student(effect, np.sqrt(total), freedom, scale, alpha, smallest_p(runs_x, runs_y, False))


def paired_t(x: ArrayLike, y: ArrayLike, alpha: float = ALPHA) -> TTest:
    """Student's t test of the mean of the differences x - y, seed by seed, over the last axis [..., R], R >= 2."""
    difference = _differences(x, y)
    runs = difference.shape[-1]
    error = difference.std(axis=-1, ddof=1) / math.sqrt(runs)
    freedom, scale = np.full(error.shape, runs - 1.0), np.maximum(np.abs(x).max(axis=-1), np.abs(y).max(axis=-1))
    return _student(difference.mean(axis=-1), error, freedom, scale, alpha, smallest_p(runs, runs, True))


def _student(effect: Array, error: Array, freedom: Array, scale: Array, alpha: float, without_spread: float) -> TTest:
    stats = require("scipy.stats", "study")
    # Equal scores have a mean, and so a spread, that is off by rounding: that is no spread and no effect.
    effect, error = (np.where(np.abs(value) > _TIE * scale, value, 0.0) for value in (effect, error))
    with np.errstate(invalid="ignore", divide="ignore"):
        p = 2 * stats.t.sf(np.abs(effect) / error, freedom)
    p = np.where(error > 0, p, np.where(effect == 0, 1.0, without_spread))
    half = stats.t.isf(alpha / 2, freedom) * error
    return TTest(effect, error, freedom, p, effect - half, effect + half)


def wilcoxon(x: ArrayLike, y: ArrayLike) -> float:
    """p-value of Wilcoxon's signed-rank test on pairs (scipy), two-sided; 1.0 where all pairs are equal."""
    difference = _differences(x, y)
    if not difference.any():
        return 1.0
    return float(require("scipy.stats", "study").wilcoxon(difference).pvalue)


def sign_flip(x: ArrayLike, y: ArrayLike, seed: int = 0) -> Array:
    """Two-sided p-value of the sign-flip permutation test on the mean of x - y, over the last axis [..., R].

    Under the null hypothesis each seed's difference is as likely to be its negative. All 2^R sign patterns are tried
    up to R = 17; beyond that 20,000 are drawn, and the observed one is counted among them, so that p is never 0.
    """
    difference = _differences(x, y)
    runs = difference.shape[-1]
    exact = 2**runs <= _EXACT
    if exact:
        signs = _sign_patterns(runs)
    else:
        signs = np.random.default_rng(seed).choice((-1.0, 1.0), size=(_DRAWS, runs))
    return _as_extreme(difference, signs, difference.sum(axis=-1), exact)


def permutation(x: ArrayLike, y: ArrayLike, seed: int = 0) -> Array:
    """Two-sided p-value of the permutation test on the difference of means of two samples, over the last axis.

    Under the null hypothesis every assignment of the pooled runs to the arms is as likely. All assignments are tried up
    to 200,000 of them (10 against 10 runs); beyond that 20,000 are drawn and the observed one is counted among them.

    Args:
        x: [..., R_x].
        y: [..., R_y].
        seed: of the draws.
    """
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    runs_x, runs_y = x.shape[-1], y.shape[-1]
    exact = math.comb(runs_x + runs_y, runs_x) <= _EXACT
    if exact:
        weights = _assignments(runs_x, runs_y)
    else:
        one = np.concatenate([np.full(runs_x, 1 / runs_x), np.full(runs_y, -1 / runs_y)])
        weights = np.random.default_rng(seed).permuted(np.tile(one, (_DRAWS, 1)), axis=1)
    return _as_extreme(np.concatenate([x, y], axis=-1), weights, x.mean(axis=-1) - y.mean(axis=-1), exact)


def smallest_p(runs_x: int, runs_y: int, paired: bool) -> float:
    """Return the smallest two-sided p-value that the permutation test can give with this many seeds."""
    if paired:
        return 2.0 / 2**runs_x
    # With equal arms the mirrored assignment is as extreme as the observed one; with unequal arms it does not exist.
    return (2.0 if runs_x == runs_y else 1.0) / math.comb(runs_x + runs_y, runs_x)


def _as_extreme(values: Array, weights: Array, observed: Array, exact: bool) -> Array:
    """Share of the arrangements [W, R] whose statistic of values [..., R] is as far from 0 as the observed one [...]."""
    flat, far = values.reshape(-1, values.shape[-1]), np.abs(observed).reshape(-1)
    slack = _TIE * np.abs(flat).max(axis=-1, initial=0.0) * np.abs(weights[0]).sum()
    counts = np.zeros(len(flat), dtype=np.int64)
    step = max(1, _ROWS // len(weights))
    for start in range(0, len(flat), step):
        rows = slice(start, start + step)
        statistic = np.abs(flat[rows] @ weights.T)
        counts[rows] = (statistic >= (far[rows] - slack[rows])[:, None]).sum(axis=1)
    p = counts / len(weights) if exact else (counts + 1) / (len(weights) + 1)
    return p.reshape(observed.shape)


@cache
def _sign_patterns(runs: int) -> Array:
    # Half of them: a pattern and its negative give the same distance from 0.
    return np.array([(1.0, *rest) for rest in product((1.0, -1.0), repeat=runs - 1)])


@cache
def _assignments(runs_x: int, runs_y: int) -> Array:
    if runs_x == runs_y:  # half of them: with the arms exchanged the distance from 0 is the same
        chosen = np.array([(0, *rest) for rest in combinations(range(1, 2 * runs_x), runs_x - 1)])
    else:
        chosen = np.array(list(combinations(range(runs_x + runs_y), runs_x)))
    weights = np.full((len(chosen), runs_x + runs_y), -1.0 / runs_y)
    np.put_along_axis(weights, chosen, 1.0 / runs_x, axis=1)
    return weights


def _differences(x: ArrayLike, y: ArrayLike) -> Array:
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if x.shape[-1] != y.shape[-1]:
        raise UserError(
            f"a paired test needs the same seeds in both arms, got {x.shape[-1]} and {y.shape[-1]} runs; "
            "drop the seeds that one arm lacks, or compare with paired=False"
        )
    return x - y


def correct(p: ArrayLike, method: Correction = "holm") -> Array:
    """p-values corrected for their number, in the order given.

    Args:
        p: [..., M]; the M of a row are one family.
        method: "holm" keeps the chance of even one false "shown" at the level (Holm 1979); "benjamini-hochberg" the
            expected share of false ones among those shown (Benjamini and Hochberg 1995); "none" leaves p alone.
    """
    p = np.asarray(p, dtype=np.float64)
    if method == "none":
        return p.copy()
    order, count = np.argsort(p, axis=-1, kind="stable"), p.shape[-1]
    ranked, rank = np.take_along_axis(p, order, axis=-1), np.arange(count)
    if method == "holm":
        adjusted = np.maximum.accumulate(ranked * (count - rank), axis=-1)
    elif method == "benjamini-hochberg":
        adjusted = np.minimum.accumulate((ranked * count / (rank + 1))[..., ::-1], axis=-1)[..., ::-1]
    else:
        raise unknown("correction", method, ("holm", "benjamini-hochberg", "none"))
    result = np.empty_like(p)
    np.put_along_axis(result, order, np.minimum(adjusted, 1.0), axis=-1)
    return result


def power(effect: float, spread: float, seeds: int, *, paired: bool = False, alpha: float = ALPHA) -> float:
    """Probability that the two-sided t test shows an effect, with `seeds` runs an arm (noncentral t).

    Args:
        effect: difference of means.
        spread: standard deviation of an arm's scores, or of the differences when paired; above 0.
        seeds: runs an arm, at least 2.
        paired: one sample of differences instead of two samples.
        alpha: level of the test.
    """
    stats = require("scipy.stats", "study")
    freedom = seeds - 1 if paired else 2 * (seeds - 1)
    shift = abs(effect) / spread * math.sqrt(seeds if paired else seeds / 2)
    critical = stats.t.isf(alpha / 2, freedom)
    # The wrong tail is below 1e-9 beyond a shift of 5, where scipy's noncentral t begins to give nan for it.
    wrong = stats.nct.cdf(-critical, freedom, shift) if shift < 5 else 0.0
    return float(stats.nct.sf(critical, freedom, shift) + wrong)


def seeds_needed(
    effect: float, spread: float, *, paired: bool = False, alpha: float = ALPHA, chance: float = 0.8
) -> float:
    """Smallest number of runs an arm with which an effect is shown with probability `chance`; at least 3.

    Args:
        effect: difference of means to detect.
        spread: standard deviation of an arm's scores, or of the differences when paired; 0 leaves the permutation
            test to decide.
        paired: whether seeds are compared pair by pair.
        alpha: two-sided level; divide it by the number of comparisons when there are several.
        chance: required power.

    Returns:
        The number of runs; inf when the effect is 0 (no number of runs shows what is not there).
    """
    if effect == 0:
        return math.inf
    if spread <= 0:
        return float(next(n for n in range(FEWEST_SEEDS, 100) if smallest_p(n, n, paired) <= alpha))
    normal = require("scipy.stats", "study").norm
    ratio = abs(effect) / spread
    guess = (1 if paired else 2) * ((normal.isf(alpha / 2) + normal.ppf(chance)) / ratio) ** 2
    if guess > 1e6:  # the t distribution is practically normal for so many seeds
        return math.ceil(guess)
    low, high = FEWEST_SEEDS, max(FEWEST_SEEDS, math.ceil(guess) + 10)
    while power(effect, spread, high, paired=paired, alpha=alpha) < chance:
        low, high = high, 2 * high
    while low < high:
        middle = (low + high) // 2
        if power(effect, spread, middle, paired=paired, alpha=alpha) >= chance:
            high = middle
        else:
            low = middle + 1
    return float(high)
