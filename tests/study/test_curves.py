"""Areas, thresholds and grids of learning curves, by hand and by scipy."""

from __future__ import annotations

import numpy as np
import pytest

from vantage.core.errors import UserError
from vantage.study.curves import (
    Reached,
    area_under_curve,
    common_grid,
    on_grid,
    samples_to_threshold,
    time_to_threshold,
)

integrate = pytest.importorskip("scipy.integrate", reason="the study extra is not installed")


def test_area_is_the_trapezoid_over_the_range() -> None:
    rng = np.random.default_rng(0)
    x, y = np.cumsum(rng.random(30)), rng.normal(size=30)
    assert area_under_curve(x, y) == pytest.approx(integrate.trapezoid(y, x) / (x[-1] - x[0]))
    assert area_under_curve([0, 10], [3.0, 3.0]) == 3.0  # in the metric's unit
    assert area_under_curve([0, 10], [0.0, 1.0]) == 0.5


def test_area_between_points_interpolates() -> None:
    assert area_under_curve([0, 10], [0.0, 1.0], 2, 6) == pytest.approx(0.4)
    x = np.linspace(0, 1, 101)
    assert area_under_curve(x, x**2, 0.255, 0.755) == pytest.approx((0.755**3 - 0.255**3) / 1.5, abs=1e-4)


def test_area_beyond_the_curve_is_refused() -> None:
    with pytest.raises(UserError, match="0 to 12 needs a curve that spans it; this one has 0 to 10"):
        area_under_curve([0, 10], [0.0, 1.0], 0, 12)


def test_threshold_is_crossed_between_evaluations() -> None:
    assert samples_to_threshold([0, 100, 200], [0.0, 0.4, 0.8], 0.6) == Reached(150.0, False)
    assert samples_to_threshold([0, 100, 200], [0.0, 0.7, 0.5], 0.7) == Reached(100.0, False)
    assert samples_to_threshold([0, 100], [0.9, 0.1], 0.5) == Reached(0.0, False)
    assert samples_to_threshold([0, 100], [0.0, 0.1], 0.5) == Reached(100.0, True)
    assert samples_to_threshold([0, 100], [9.0, 7.0], 8.0, "lower") == Reached(50.0, False)
    with pytest.raises(UserError, match="increasing"):
        samples_to_threshold([0, 0], [0.0, 1.0], 0.5)


def test_median_time_counts_those_that_never_arrive() -> None:
    def runs(*times: float, never: tuple[float, ...] = ()) -> list[Reached]:
        return [Reached(t, False) for t in times] + [Reached(t, True) for t in never]

    assert time_to_threshold(runs(3, 1, 2)) == (2.0, 3, 3)
    assert time_to_threshold(runs(1, 2, 3, 4)) == (2.5, 4, 4)
    assert time_to_threshold(runs(1, 2, 3, never=(10, 10))) == (3.0, 3, 5)
    assert time_to_threshold(runs(1, 2, never=(10, 10, 10))) == (None, 2, 5)
    assert time_to_threshold(runs(1, 2, never=(10, 10))) == (None, 2, 4)
    assert time_to_threshold(runs(never=(10,))) == (None, 0, 1)
    # Kaplan and Meier: who left at 1.5 stands for those still going; survival 1, 3/4, then 3/8 at 2
    assert time_to_threshold(runs(1, 2, 3, never=(1.5,))) == (2.0, 3, 4)


def test_common_grid_is_where_all_runs_are() -> None:
    grid = common_grid([[0, 2, 4, 6], [1, 3, 5]])
    np.testing.assert_array_equal(grid, [1, 2, 3, 4, 5])
    assert len(common_grid([np.arange(1000)], points=50)) == 50
    assert len(common_grid([[0, 1], [2, 3]])) == 0
    assert len(common_grid([])) == 0
    np.testing.assert_array_equal(on_grid([[0, 2], [0, 4]], [[0, 2], [0, 8]], [1.0]), [[1], [2]])
