"""Learning curves: one grid for several runs, area under the curve, samples until a threshold is reached."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from vantage.core.errors import UserError, require
from vantage.study.statistics import Array


class Reached(NamedTuple):
    """Number of samples at which a run first reached the threshold, or, if censored, its length without reaching it."""

    samples: float
    censored: bool


class TimeToThreshold(NamedTuple):
    """Summary of several runs' `Reached`: the median over runs, and the number that reached the threshold.

    `median` is None where half of the runs do not reach it: the budget was too small to estimate it.
    """

    median: float | None
    reached: int
    runs: int


def common_grid(xs: Sequence[ArrayLike], points: int = 200) -> Array:
    """Return the grid on which all runs are defined, from the latest start to the earliest end.

    Args:
        xs: each run's increasing positions [P_i], P_i >= 1.
        points: if the runs' own positions are more than this many, evenly spaced ones take their place.

    Returns:
        Increasing positions [M]; empty where the runs have no common range.
    """
    arrays = [np.asarray(x, dtype=np.float64) for x in xs]
    if not arrays or any(array.size == 0 for array in arrays):
        return np.empty(0)
    start, end = max(array[0] for array in arrays), min(array[-1] for array in arrays)
    if start > end:
        return np.empty(0)
    grid = np.unique(np.concatenate([*arrays, [start, end]]))
    grid = grid[(grid >= start) & (grid <= end)]
    return grid if len(grid) <= points else np.linspace(start, end, points)


def on_grid(xs: Sequence[ArrayLike], ys: Sequence[ArrayLike], grid: ArrayLike) -> Array:
    """Interpolate each run linearly: [R, M] for R runs and M positions, which must lie within every run."""
    grid = np.asarray(grid, dtype=np.float64)
    return np.stack([np.interp(grid, np.asarray(x, float), np.asarray(y, float)) for x, y in zip(xs, ys, strict=True)])


def area_under_curve(
    samples: ArrayLike, scores: ArrayLike, start: float | None = None, until: float | None = None
) -> float:
    """Return the mean height of a learning curve between `start` and `until`: trapezoids over samples, divided by the range.

    The division keeps the metric's unit: the area is the average score during the run.

    Args:
        samples: increasing [P], P >= 2.
        scores: [P].
        start: defaults to the first of `samples`.
        until: defaults to the last of `samples`.

    Raises:
        UserError: the curve does not span the range; an area over less would not be comparable.
    """
    x, y = _curve(samples, scores)
    start, until = x[0] if start is None else start, x[-1] if until is None else until
    if not x[0] <= start < until <= x[-1]:
        raise UserError(f"the area from {start:g} to {until:g} needs a curve that spans it; this one has {_span(x)}")
    inside = np.concatenate([[start], x[(x > start) & (x < until)], [until]])
    heights = np.interp(inside, x, y)
    return float(np.diff(inside) @ (heights[1:] + heights[:-1]) / 2 / (until - start))


def samples_to_threshold(samples: ArrayLike, scores: ArrayLike, threshold: float, direction: str = "higher") -> Reached:
    """Return the samples at which a learning curve first reaches the threshold, by linear interpolation.

    Args:
        samples: increasing [P].
        scores: [P].
        threshold: the score to reach.
        direction: "lower" where small scores are good: reached at or below the threshold.

    Returns:
        The samples at the first crossing; the last of `samples`, censored, where there is none.
    """
    x, y = _curve(samples, scores)
    short = (threshold - y) if direction == "higher" else (y - threshold)
    hits = np.flatnonzero(short <= 0)
    if not len(hits):
        return Reached(float(x[-1]), True)
    at = int(hits[0])
    if at == 0:
        return Reached(float(x[0]), False)
    share = short[at - 1] / (short[at - 1] - short[at])
    return Reached(float(x[at - 1] + share * (x[at] - x[at - 1])), False)


def time_to_threshold(runs: Sequence[Reached]) -> TimeToThreshold:
    """Return the median over runs by the Kaplan-Meier estimate, which handles censored runs.

    Leaving the censored runs out, or counting their budget as their time, would both favour a method that fails.
    """
    reached = [run.samples for run in runs if not run.censored]
    if not reached:
        return TimeToThreshold(None, 0, len(runs))
    stats = require("scipy.stats", "study")
    data = stats.CensoredData.right_censored([run.samples for run in runs], [run.censored for run in runs])
    survival = stats.ecdf(data).sf
    # The median is where survival first falls to one half; where it stays exactly there, the middle of that interval.
    below = survival.quantiles[survival.probabilities <= 0.5 + 1e-12]
    if not len(below):
        return TimeToThreshold(None, len(reached), len(runs))
    median = float(below[0])
    at_half = math.isclose(float(survival.probabilities[survival.quantiles == below[0]][0]), 0.5)
    later = [value for value in reached if value > median]
    if at_half:
        median = (median + min(later)) / 2 if later else math.nan
    return TimeToThreshold(None if math.isnan(median) else median, len(reached), len(runs))


def _curve(samples: ArrayLike, scores: ArrayLike) -> tuple[Array, Array]:
    x, y = np.asarray(samples, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    if x.ndim != 1 or x.shape != y.shape or not len(x):
        raise UserError(f"a curve needs as many scores as samples, got shapes {x.shape} and {y.shape}")
    if not (np.isfinite(x).all() and np.isfinite(y).all() and (np.diff(x) > 0).all()):
        raise UserError("a curve needs finite scores at increasing samples")
    return x, y


def _span(x: Array) -> str:
    return f"{x[0]:g} to {x[-1]:g}"
