"""The rule of decision: it errs at most 5 % of the time between arms of one method, and it sees what is clear."""

from __future__ import annotations

import math

import numpy as np
import pytest

from vantage.study.calibration import SOURCES, every_to_first, false_rate, found_rate
from vantage.study.comparison import SHOWN, compare, compare_all, shown
from vantage.study.significance import permutation, sign_flip, welch

pytest.importorskip("scipy.stats", reason="the study extra is not installed")

PAIRS = [(i, j) for i in range(6) for j in range(i)]


@pytest.mark.parametrize("seeds", [3, 5, 10])
@pytest.mark.parametrize("source", SOURCES)
def test_two_arms_of_one_method_differ_at_most_one_time_in_twenty(source: str, seeds: int) -> None:
    assert false_rate(SOURCES[source], seeds) <= 0.05


@pytest.mark.parametrize("source", SOURCES)
def test_any_of_six_arms_of_one_method_differs_at_most_one_time_in_twenty(source: str) -> None:
    assert false_rate(SOURCES[source], 5, arms=6, pairs=every_to_first(6), records=10) <= 0.05
    assert false_rate(SOURCES[source], 5, arms=6, pairs=PAIRS, records=10) <= 0.05


@pytest.mark.parametrize("source", ["normal", "skewed (log-normal)", "k of 8 right", "two clusters"])
def test_the_paired_rule_holds_its_level_too(source: str) -> None:
    for seeds in (4, 5, 10):
        assert false_rate(SOURCES[source], seeds, paired=True) <= 0.0525  # a t test at its nominal level, to 3 errors


@pytest.mark.parametrize(("seeds_x", "seeds_y"), [(10, 3), (5, 3), (5, 2)])
def test_lost_runs_do_not_break_the_level(seeds_x: int, seeds_y: int) -> None:
    rng = np.random.default_rng(0)
    for source in ("normal", "two clusters", "solved or not"):
        drawn = SOURCES[source](rng, 4000 * (seeds_x + seeds_y)).reshape(4000, -1)
        x, y = drawn[:, :seeds_x], drawn[:, seeds_x:]
        test = welch(x, y)
        assert shown(test, test.p, permutation(x, y), seeds_x, seeds_y).mean() <= 0.05
        if source == "two clusters" and seeds_y == 3 and seeds_x == 10:
            assert (test.p <= 0.05).mean() > 0.15  # what Welch alone would do, and why there is a third condition


def test_a_clear_difference_is_shown_with_five_seeds() -> None:
    assert found_rate(SOURCES["normal"], 5, 3.0) > 0.95
    assert found_rate(SOURCES["normal"], 5, 4.0, arms=6) > 0.95
    assert found_rate(SOURCES["k of 64 right"], 5, 3.0) > 0.95
    assert found_rate(SOURCES["normal"], 3, 4.0) > 0.8
    # and the forecast of seeds is about right: 6 an arm see 2 standard deviations four times in five
    assert found_rate(SOURCES["normal"], 6, 2.0) == pytest.approx(0.8, abs=0.08)


def test_difference_says_what_it_found() -> None:
    found = compare([0.80, 0.79, 0.81, 0.78, 0.80], [0.70, 0.71, 0.69, 0.72, 0.70])
    assert found.verdict == "difference shown"
    assert found.shown
    assert found.effect == pytest.approx(0.092)
    assert found.interval[0] > 0
    assert found.p == found.p_alone < 0.001
    assert found.p_permutation == pytest.approx(2 / 252)
    assert found.seeds == (5, 5)
    assert found.seeds_needed == 3


def test_no_difference_says_how_many_seeds_would_be_needed() -> None:
    found = compare([0.70, 0.72, 0.69, 0.73, 0.71], [0.70, 0.71, 0.69, 0.72, 0.70])
    assert found.verdict == "no difference shown"
    assert found.interval[0] < 0 < found.interval[1]
    assert found.seeds_needed > 5
    assert compare([0.5, 0.6, 0.7], [0.7, 0.6, 0.5]).seeds_needed == math.inf


def test_the_correction_can_take_back_what_one_comparison_shows() -> None:
    rng = np.random.default_rng(0)
    base = rng.normal(size=5)
    scores = {"base": base, "near": base + 1.9 * base.std(ddof=1)} | {f"same{k}": rng.normal(size=5) for k in range(8)}
    alone = compare(scores["near"], base)
    assert alone.shown
    family = compare_all(scores, [(name, "base") for name in scores if name != "base"])
    near = family["near", "base"]
    assert near.p == pytest.approx(near.p_alone * 9)
    assert near.p > 0.05
    assert not near.shown
    assert near.interval == alone.interval
    assert near.comparisons == 9
    assert near.seeds_needed > alone.seeds_needed
    assert compare_all(scores, [("near", "base")], correction="none")["near", "base"].shown


@pytest.mark.parametrize("seeds", [1, 2])
def test_too_few_seeds_show_nothing(seeds: int) -> None:
    found = compare(np.arange(seeds) * 1e-6 + 1, np.arange(seeds) * 1e-6)
    assert found.verdict == "no difference shown"
    assert found.effect == pytest.approx(1)
    if seeds == 1:
        assert (found.interval, found.p, found.seeds_needed) == (None, 1.0, None)


def test_tasks_are_averaged_within_a_run() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.normal(1, 1, (5, 3)), rng.normal(0, 1, (4, 3))
    assert compare(x, y) == compare(x.mean(axis=1), y.mean(axis=1))


def test_pairing_sees_what_seeds_have_in_common() -> None:
    rng = np.random.default_rng(2)
    instance = rng.normal(0, 5, 8)
    x, y = instance + 1 + 0.2 * rng.normal(size=8), instance + 0.2 * rng.normal(size=8)
    assert not compare(x, y).shown
    paired = compare(x, y, paired=True)
    assert paired.verdict == SHOWN
    assert paired.paired
    assert paired.p_permutation == sign_flip(x, y)


def test_no_pairs_no_comparisons() -> None:
    assert compare_all({"a": [1.0]}, []) == {}
