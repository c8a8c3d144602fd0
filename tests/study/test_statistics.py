"""Figures and intervals against their definitions (arXiv 2108.13264) and scipy; coverage of the intervals."""

from __future__ import annotations

import math

import numpy as np
import pytest

from vantage.core.errors import UserError
from vantage.study.calibration import SOURCES, coverage
from vantage.study.statistics import (
    bootstrap,
    bootstrap_curve,
    bootstrap_improvement,
    iqm,
    mean,
    median,
    median_of_tasks,
    optimality_gap,
    performance_profile,
    probability_of_improvement,
)

stats = pytest.importorskip("scipy.stats", reason="the study extra is not installed")


@pytest.fixture
def scores() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(7, 4)) ** 3


def test_point_figures_are_the_papers(scores: np.ndarray) -> None:
    assert mean(scores) == pytest.approx(np.mean([np.mean(scores[:, k]) for k in range(4)]))
    assert iqm(scores) == pytest.approx(stats.trim_mean(scores, 0.25, axis=None))
    assert median_of_tasks(scores) == pytest.approx(np.median(scores.mean(axis=0)))
    assert median(scores) == pytest.approx(np.median(scores.ravel()))
    assert optimality_gap(scores, 1.0) == pytest.approx(1.0 - np.minimum(scores, 1.0).mean())
    assert optimality_gap(-scores, -1.0, "lower") == pytest.approx(optimality_gap(scores, 1.0))


@pytest.mark.parametrize("count", range(1, 13))
def test_iqm_is_scipys_trimmed_mean_for_every_number_of_runs(count: int) -> None:
    values = np.random.default_rng(count).exponential(size=count)
    assert iqm(values) == pytest.approx(stats.trim_mean(values, 0.25))


def test_iqm_of_five_is_the_middle_three() -> None:
    assert iqm([100.0, 1.0, 2.0, 3.0, -50.0]) == 2.0


@pytest.mark.parametrize("statistic", [mean, iqm, median, median_of_tasks, optimality_gap])
def test_leading_axes_are_a_batch(statistic, scores: np.ndarray) -> None:
    batch = np.stack([scores, scores + 1, -scores]).reshape(3, 1, 7, 4)
    assert statistic(batch).shape == (3, 1)
    np.testing.assert_allclose(statistic(batch)[:, 0], [statistic(scores), statistic(scores + 1), statistic(-scores)])


def test_probability_of_improvement_is_mann_whitney_averaged_over_tasks(scores: np.ndarray) -> None:
    rng = np.random.default_rng(1)
    x, y = rng.integers(0, 4, size=(5, 3)), rng.integers(0, 4, size=(8, 3))  # many ties
    expected = np.mean([stats.mannwhitneyu(x[:, k], y[:, k]).statistic / (5 * 8) for k in range(3)])
    assert probability_of_improvement(x, y) == pytest.approx(expected)
    assert probability_of_improvement(x, y) + probability_of_improvement(y, x) == pytest.approx(1)
    assert probability_of_improvement([1.0, 1.0], [1.0]) == 0.5
    assert probability_of_improvement([2.0, 3.0], [1.0, 0.0]) == 1.0
    with pytest.raises(UserError, match="3 tasks and y 4"):
        probability_of_improvement(x, scores)


def test_percentile_interval_is_scipys(scores: np.ndarray) -> None:
    one = scores[:, 0]
    ours = bootstrap(one, mean, expand=False, resamples=40_000)
    theirs = stats.bootstrap(
        (one,), np.mean, method="percentile", n_resamples=40_000, rng=np.random.default_rng(3)
    ).confidence_interval
    spread = theirs.high - theirs.low
    assert ours.low == pytest.approx(theirs.low, abs=0.03 * spread)
    assert ours.high == pytest.approx(theirs.high, abs=0.03 * spread)


def test_strata_are_drawn_apart_unless_the_runs_are_shared() -> None:
    run = np.random.default_rng(2).normal(size=(8, 1))
    scores = run + np.zeros((1, 5))  # one policy scored on five tasks, the same on each
    apart, joint = bootstrap(scores, mean, expand=False), bootstrap(scores, mean, expand=False, joint=True)
    alone = bootstrap(run, mean, expand=False)
    assert joint.high - joint.low == pytest.approx(alone.high - alone.low, rel=0.05)
    assert (apart.high - apart.low) * math.sqrt(5) == pytest.approx(alone.high - alone.low, rel=0.1)


def test_the_same_seed_gives_the_same_interval_and_another_seed_nearly(scores: np.ndarray) -> None:
    assert bootstrap(scores, seed=4) == bootstrap(scores, seed=4)
    assert bootstrap(scores, seed=4) != bootstrap(scores, seed=5)
    assert bootstrap(scores, seed=4).low == pytest.approx(bootstrap(scores, seed=5).low, abs=0.2)


def test_few_runs_give_no_interval() -> None:
    assert bootstrap([0.5], mean) == (0.5, None, None)
    assert bootstrap([0.5, 0.7], mean)[1:] == (None, None)
    assert bootstrap_improvement([1.0, 2.0], [0.0, 0.1, 0.2]) == (1.0, None, None)
    assert bootstrap([0.5, 0.5, 0.5], mean) == (0.5, 0.5, 0.5)


def test_expanded_interval_is_near_students_for_normal_scores() -> None:
    values = np.random.default_rng(5).normal(size=20)
    found = bootstrap(values, mean, resamples=40_000)
    half = stats.t.isf(0.025, 19) * values.std(ddof=1) / math.sqrt(20)
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.05)


def test_expanding_mends_the_coverage_at_five_seeds() -> None:
    plain = coverage(SOURCES["normal"], 5, mean, expand=False, studies=800, resamples=1000)
    wide = coverage(SOURCES["normal"], 5, mean, expand=True, studies=800, resamples=1000)
    assert plain < 0.87  # what the module warns of
    assert 0.89 < wide < 0.96


def test_interval_of_the_probability_of_improvement() -> None:
    rng = np.random.default_rng(6)
    x, y = rng.normal(size=10) + 0.5, rng.normal(size=12)
    found = bootstrap_improvement(x, y)
    assert 0 <= found.low < found.value < found.high <= 1
    back = bootstrap_improvement(y, x)
    assert back.value == pytest.approx(1 - found.value)
    assert back.low == pytest.approx(1 - found.high, abs=0.03)
    assert bootstrap_improvement(x + 100, y) == (1.0, 1.0, 1.0)


def test_curve_band_is_the_pointwise_bootstrap_of_the_mean() -> None:
    curves = np.random.default_rng(7).normal(size=(6, 9)).cumsum(axis=1)
    band = bootstrap_curve(curves, resamples=4000)
    np.testing.assert_allclose(band.value, curves.mean(axis=0))
    assert (band.low < band.value).all()
    assert (band.value < band.high).all()
    last = bootstrap(curves[:, -1], mean, resamples=4000)
    assert band.low[-1] == pytest.approx(last.low, abs=1e-9)  # the same draws, the same level
    flat = bootstrap_curve(curves[:2])
    np.testing.assert_array_equal(flat.low, flat.high)


def test_performance_profile_counts_runs_above(scores: np.ndarray) -> None:
    taus = np.linspace(-3, 3, 11)
    profile = performance_profile(scores, taus)
    np.testing.assert_allclose(profile.value, [(scores > tau).mean() for tau in taus])
    assert (profile.low <= profile.value).all()
    assert (profile.value <= profile.high).all()
    assert (np.diff(profile.value) <= 0).all()
    below = performance_profile(scores, taus, direction="lower")
    np.testing.assert_allclose(below.value, [(scores < tau).mean() for tau in taus])


def test_large_input_is_drawn_in_chunks(monkeypatch: pytest.MonkeyPatch, scores: np.ndarray) -> None:
    monkeypatch.setattr("vantage.study.statistics._CHUNK", 7 * 4 * 100)  # 100 resamples at a time
    small = bootstrap(scores, mean, resamples=5050)
    assert small.low < small.value < small.high


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mean([]), "at least one run"),
        (lambda: mean([0.1, math.nan]), "not finite; leave crashed runs out"),
        (lambda: bootstrap([1.0, 2.0, 3.0], level=1.5), "level is 1.5"),
        (lambda: bootstrap([1.0, 2.0, 3.0], resamples=0), "resamples is 0"),
    ],
)
def test_bad_input_is_named(call, message: str) -> None:
    with pytest.raises(UserError, match=message):
        call()
