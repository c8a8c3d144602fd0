"""Sparse least squares: closed forms, exhaustive search, and what every step must keep."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from vantage.core.errors import UserError
from vantage.fields.compression.quadratic import (
    Quadratic,
    active_set,
    descend,
    largest,
    line_search_step,
    refit,
    shifted,
    threshold_step,
)


def problem(n: int = 12, p: int = 9, ridge: float = 0.05, first: float = 0.0, seed: int = 0) -> Quadratic:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, p, generator=generator, dtype=torch.float64)
    return Quadratic.of_gradients(x, torch.randn(p, generator=generator, dtype=torch.float64), ridge, first)


def brute(q: Quadratic, k: int) -> float:
    """The least Q over all supports of k entries."""
    p = len(q.center)
    supports = (
        torch.zeros(p, dtype=torch.bool).index_fill(0, torch.tensor(s), True)
        for s in itertools.combinations(range(p), k)
    )
    return min(q.value(refit(q, support)) for support in supports)


def test_gradient_and_value_agree_with_autograd() -> None:
    q = problem(first=0.3)
    w = torch.randn(9, dtype=torch.float64, generator=torch.Generator().manual_seed(5)).requires_grad_()
    r = q.target - q.rows @ w
    loss = 0.5 * r @ r + q.ridge * (w - q.center).square().sum() + q.linear @ w
    loss.backward()
    assert q.value(w.detach()) == pytest.approx(loss.item())
    assert w.grad is not None
    torch.testing.assert_close(q.gradient(w.detach()), w.grad)
    with pytest.raises(UserError, match="ridge=-1"):
        Quadratic.of_gradients(q.rows, q.center, -1)


def test_no_step_raises_q() -> None:
    for seed in range(5):
        q = problem(n=6, p=20, first=0.2 * (seed % 2), seed=seed)
        w = largest(q.center, 5)
        smooth = q.smoothness()
        for step in range(30):
            moved = threshold_step(q, w, 5, smooth) if step % 2 else line_search_step(q, w, 5, q.residual(w))[0]
            assert int((moved != 0).sum()) <= 5
            assert q.value(moved) <= q.value(w) + 1e-10
            w = moved


def test_the_line_search_takes_the_exact_step_where_the_support_stays() -> None:
    # Orthogonal columns: one exact step from a support of one reaches its minimum.
    q = Quadratic(torch.eye(3, dtype=torch.float64), torch.tensor([3.0, 0.1, 0.0], dtype=torch.float64),
                  torch.tensor([3.0, 0.1, 0.0], dtype=torch.float64), 0.0, torch.zeros(3, dtype=torch.float64))  # fmt: skip
    w = torch.tensor([2.0, 0.0, 0.0], dtype=torch.float64)
    found, residual = line_search_step(q, w, 1, q.residual(w))
    torch.testing.assert_close(found, torch.tensor([3.0, 0.0, 0.0], dtype=torch.float64))
    torch.testing.assert_close(residual, q.residual(found))


def test_refit_is_the_minimum_on_its_support_by_either_formula() -> None:
    for n, p in ((4, 12), (30, 12)):
        for ridge, first in ((0.1, 0.0), (0.1, 0.4)):
            q = problem(n, p, ridge, first, seed=n)
            support = torch.arange(p) % 2 == 0
            w = refit(q, support)
            assert float(q.gradient(w)[support].abs().max()) < 1e-8
            assert bool((w[~support] == 0).all())


def test_refit_without_ridge_of_too_few_rows_is_still_a_minimum() -> None:
    q = problem(n=3, p=8, ridge=0.0)
    w = refit(q, torch.ones(8, dtype=torch.bool))
    assert q.value(w) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_thresholding_comes_near_the_best_of_all_supports(seed: int) -> None:
    q = problem(n=30, p=9, seed=seed)
    best, zero = brute(q, 4), q.value(torch.zeros(9, dtype=torch.float64))
    found = q.value(refit(q, active_set(q, q.center, 4) != 0))
    naive = q.value(largest(q.center, 4))
    assert best - 1e-9 <= found <= naive
    assert found - best <= 0.25 * (zero - best)


def test_the_active_set_leaves_dead_columns_and_pruned_weights_out() -> None:
    q = problem(n=10, p=12)
    rows, center = q.rows.clone(), q.center.clone()
    rows[:, 3] = 0
    center[7] = 0
    dead = Quadratic(rows, rows @ center, center, q.ridge, q.linear)
    found = active_set(dead, center, 6)
    assert found[3] == found[7] == 0
    assert int((found != 0).sum()) <= 6
    assert dead.value(found) <= dead.value(largest(center * (rows != 0).any(0), 6)) + 1e-9


def test_all_weights_kept_is_the_start() -> None:
    q = problem()
    for found in (descend(q, q.center, 9), active_set(q, q.center, 9), refit(q, torch.ones(9, dtype=torch.bool))):
        torch.testing.assert_close(found, q.center)
        assert q.value(found) == pytest.approx(0.0, abs=1e-12)


def test_the_support_moves_only_with_a_first_order_term() -> None:
    q = problem()
    assert torch.equal(shifted(q, q.center, 4), q.center)
    tilted: Tensor = shifted(problem(first=0.5), q.center, 4)
    assert int((tilted != 0).sum()) <= 4
