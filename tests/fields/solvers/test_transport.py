"""The transport problem: its optimum, plans made feasible, and what is refused."""

from __future__ import annotations

import itertools

import pytest
import torch

from vantage.core.errors import UserError
from vantage.fields.solvers.transport import Plan, Transport, clouds, exact, feasible


def test_the_linear_program_is_the_best_permutation() -> None:
    pytest.importorskip("scipy")
    problem = clouds(5, seed=4)
    best = min(
        float(sum(problem.cost[i, j] for i, j in enumerate(order))) / 5 for order in itertools.permutations(range(5))
    )
    assert exact(problem) == pytest.approx(best)


def test_a_plan_is_made_feasible() -> None:
    problem = clouds(6, seed=0)
    plan = torch.rand(6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64) / 20
    found = feasible(plan, problem)
    assert Plan(found, 0.0, 0).violation(problem) < 1e-12
    assert float(found.min()) >= 0
    right = torch.outer(problem.source, problem.target)
    torch.testing.assert_close(feasible(right, problem), right)
    moved = float((found - plan).abs().sum())
    assert moved <= 2 * Plan(plan, 0.0, 0).violation(problem) + 1e-12


def test_problems_that_do_not_fit_are_refused() -> None:
    a = torch.full((3,), 1 / 3)
    with pytest.raises(UserError, match="does not fit"):
        Transport(a, a, torch.zeros(3, 2))
    with pytest.raises(UserError, match="negative"):
        Transport(torch.tensor([1.5, -0.5, 0.0]), a, torch.zeros(3, 3))
    with pytest.raises(UserError, match="different masses"):
        Transport(a, 2 * a, torch.zeros(3, 3))
    with pytest.raises(UserError, match="points=1"):
        clouds(1)
