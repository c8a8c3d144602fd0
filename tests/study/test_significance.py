"""Tests, corrections and power against scipy, statsmodels' published tables, and hand counts."""

from __future__ import annotations

import math

import numpy as np
import pytest

from vantage.core.errors import UserError
from vantage.study.significance import (
    correct,
    paired_t,
    permutation,
    power,
    seeds_needed,
    sign_flip,
    smallest_p,
    welch,
    wilcoxon,
)

stats = pytest.importorskip("scipy.stats", reason="the study extra is not installed")


@pytest.fixture
def arms() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(0.4, 1.0, size=(50, 6)), rng.normal(0.0, 2.0, size=(50, 6))


def test_welch_and_paired_t_are_scipys(arms: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = arms
    for ours, theirs in (
        (welch(x, y[:, :4]), stats.ttest_ind(x, y[:, :4], axis=1, equal_var=False)),
        (paired_t(x, y), stats.ttest_rel(x, y, axis=1)),
    ):
        interval = theirs.confidence_interval(0.95)
        np.testing.assert_allclose(ours.p, theirs.pvalue)
        np.testing.assert_allclose(ours.low, interval.low)
        np.testing.assert_allclose(ours.high, interval.high)
        np.testing.assert_array_equal((ours.low > 0) | (ours.high < 0), ours.p < 0.05)


def test_permutation_tests_are_scipys_where_exact(arms: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = arms[0][:8], arms[1][:8]

    def gap(a, b, axis):
        return a.mean(axis=axis) - b.mean(axis=axis)

    for ours, kind in ((permutation(x, y), "independent"), (sign_flip(x, y), "samples")):
        for row in range(8):
            a, b = x[row], y[row]
            if kind == "samples":
                theirs = stats.permutation_test(
                    (a - b,), np.mean, permutation_type="samples", n_resamples=np.inf, vectorized=False
                )
            else:
                theirs = stats.permutation_test(
                    (a, b), gap, permutation_type="independent", n_resamples=np.inf, vectorized=True
                )
            # scipy doubles the smaller tail; on an equal number of runs both tails are one and the same count
            assert ours[row] == pytest.approx(theirs.pvalue)


def test_sign_flip_by_hand() -> None:
    assert sign_flip([1.0, 2.0, 3.0, 4.0, 5.0], np.zeros(5)) == 2 / 32  # why 5 paired seeds can never reach 0.05
    assert sign_flip([1.0, 1.0, -1.0], np.zeros(3)) == 1.0
    assert sign_flip([0.0, 0.0, 0.0], np.zeros(3)) == 1.0


def test_permutation_by_hand() -> None:
    assert permutation(np.arange(5) + 10.0, np.arange(5.0)) == pytest.approx(2 / 252)
    assert permutation([3.0, 4.0], [1.0]) == pytest.approx(1 / 3)
    assert permutation([0.1, 0.2, 0.3], [0.1, 0.2, 0.3]) == 1.0


@pytest.mark.parametrize(("x", "y"), [(3, 3), (5, 5), (5, 4), (5, 2), (4, 3)])
def test_smallest_p_is_what_separated_arms_get(x: int, y: int) -> None:
    a, b = np.arange(x) + 100.0, np.arange(y) * 0.5
    assert permutation(a, b) == pytest.approx(smallest_p(x, y, False))
    if x == y:
        assert sign_flip(a, b) == smallest_p(x, y, True)


def test_equal_but_for_rounding_counts_as_equal() -> None:
    x, y = np.array([0.1, 0.2, 0.3]), np.array([0.3, 0.2, 0.1])
    assert permutation(x, y) == 1.0
    assert permutation(x * 1e12, y * 1e12) == 1.0
    assert permutation(x * 1e-12, y * 1e-12) == 1.0


def test_many_seeds_fall_back_to_draws_which_agree_with_the_normal_limit() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.normal(0.4, 1, 40), rng.normal(0, 1, 40)
    assert permutation(x, y, seed=3) == permutation(x, y, seed=3)
    assert permutation(x, y) == pytest.approx(stats.ttest_ind(x, y).pvalue, abs=0.01)
    assert sign_flip(x, y) == pytest.approx(stats.ttest_rel(x, y).pvalue, abs=0.01)
    assert 0 < permutation(x + 100, y) <= 1e-4  # never 0: the observed arrangement counts
    assert 0 < sign_flip(x + 100, y) <= 1e-4


def test_wilcoxon_is_scipys(arms: tuple[np.ndarray, np.ndarray]) -> None:
    assert wilcoxon(arms[0][0], arms[1][0]) == pytest.approx(stats.wilcoxon(arms[0][0], arms[1][0]).pvalue)
    assert wilcoxon([1.0, 2.0], [1.0, 2.0]) == 1.0


def test_no_spread_leaves_the_permutation_test_to_speak() -> None:
    assert welch([0.1] * 3, [0.1] * 5).p == 1.0
    assert welch([0.1] * 3, [0.7] * 3).p == pytest.approx(0.1)
    assert welch([0.1] * 5, [0.7] * 5).p == pytest.approx(2 / 252)
    assert paired_t([0.1] * 5, [0.7] * 5).p == pytest.approx(2 / 32)


def test_holm_by_hand_and_benjamini_hochberg_by_scipy() -> None:
    p = np.array([0.01, 0.04, 0.03, 0.005])
    np.testing.assert_allclose(correct(p), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(correct(p, "benjamini-hochberg"), stats.false_discovery_control(p))
    np.testing.assert_array_equal(correct(p, "none"), p)
    np.testing.assert_allclose(correct([0.5, 0.9]), [1.0, 1.0])
    assert correct(np.empty(0)).shape == (0,)
    with pytest.raises(UserError, match="did you mean holm"):
        correct(p, "holms")  # type: ignore[arg-type]


def test_corrections_take_batches() -> None:
    p = np.random.default_rng(2).random((20, 7))
    for method in ("holm", "benjamini-hochberg"):
        np.testing.assert_allclose(correct(p, method), [correct(row, method) for row in p])
    np.testing.assert_allclose(correct(p, "benjamini-hochberg"), [stats.false_discovery_control(row) for row in p])


@pytest.mark.parametrize(
    ("effect", "paired", "expected"),
    # Cohen's table for two-sided 5 % and 80 % power: 64, 26 and 17 an arm; 34 and 15 pairs.
    [(0.5, False, 64), (0.8, False, 26), (1.0, False, 17), (0.5, True, 34), (0.8, True, 15)],
)
def test_seeds_needed_are_the_textbooks(effect: float, paired: bool, expected: int) -> None:
    found = seeds_needed(effect, 1.0, paired=paired)
    assert found == expected
    assert power(effect, 1.0, expected, paired=paired) >= 0.8 > power(effect, 1.0, expected - 1, paired=paired)
    assert seeds_needed(-effect * 3, 3.0, paired=paired) == expected


def test_seeds_needed_at_the_edges() -> None:
    assert seeds_needed(0.0, 1.0) == math.inf
    assert seeds_needed(100.0, 1.0) == 3
    assert seeds_needed(1.0, 0.0) == 4  # 2 / C(8, 4) is the first permutation p below 0.05
    assert seeds_needed(1.0, 0.0, alpha=0.05 / 15) == 6
    assert seeds_needed(1e-4, 1.0) == pytest.approx(2 * (1.959964 + 0.841621) ** 2 * 1e8, rel=1e-5)
    assert seeds_needed(0.5, 1.0, alpha=0.01) > seeds_needed(0.5, 1.0)


def test_power_is_that_of_the_simulated_test() -> None:
    rng = np.random.default_rng(3)
    x, y = rng.normal(1.5, 1, (20_000, 6)), rng.normal(0, 1, (20_000, 6))
    found = stats.ttest_ind(x, y, axis=1).pvalue < 0.05
    assert power(1.5, 1.0, 6) == pytest.approx(found.mean(), abs=0.01)
    for effect in np.geomspace(0.01, 100, 30):
        for seeds in (2, 5, 30):
            assert 0.05 <= power(effect, 1.0, seeds) <= 1.0


def test_paired_tests_want_equal_numbers() -> None:
    with pytest.raises(UserError, match="got 3 and 2 runs"):
        paired_t([1.0, 2.0, 3.0], [1.0, 2.0])
