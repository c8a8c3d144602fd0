"""Optimal transport between two histograms: the problem, plans, their costs and violations, and the exact optimum.

A method is a `Solver`: called with a problem, it returns a plan.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from vantage.core.errors import UserError, require


@dataclass(frozen=True)
class Transport:
    """Transport problem: move the mass of `source` to `target` at minimum cost, by T >= 0 with these row and column sums.

    Attributes:
        source: a [m], non-negative.
        target: b [n], non-negative, with the same sum.
        cost: cost of moving one unit of mass from i to j, [m, n].

    Raises:
        UserError: shapes, signs or totals do not fit.
    """

    source: Tensor
    target: Tensor
    cost: Tensor

    def __post_init__(self) -> None:
        if self.cost.shape != (*self.source.shape, *self.target.shape) or self.cost.dim() != 2:
            raise UserError(
                f"a cost of shape {list(self.cost.shape)} does not fit {list(self.source.shape)} and {list(self.target.shape)}"
            )
        if bool((self.source < 0).any()) or bool((self.target < 0).any()):
            raise UserError("the histograms of a transport problem cannot be negative")
        if not float(self.source.sum()) > 0:
            raise UserError(
                f"the source of a transport problem has a mass of {float(self.source.sum()):g}: it must be above 0"
            )
        if not torch.isclose(self.source.sum(), self.target.sum(), rtol=1e-5):
            raise UserError(
                f"source and target have different masses: {float(self.source.sum()):g} and {float(self.target.sum()):g}"
            )


@dataclass(frozen=True)
class Plan:
    """Result of a solver.

    Attributes:
        plan: T [m, n].
        value: value of the solver's objective.
        iterations: number of iterations.
    """

    plan: Tensor
    value: float
    iterations: int

    def cost(self, problem: Transport) -> float:
        """Return the cost of the plan, feasible or not."""
        return float(torch.where(self.plan == 0, 0.0, self.plan * problem.cost).sum())

    def violation(self, problem: Transport) -> float:
        """Return the violation of the marginals: the sum of absolute differences of row and column sums."""
        return float((self.plan.sum(1) - problem.source).abs().sum() + (self.plan.sum(0) - problem.target).abs().sum())

    def nonzeros(self, least: float = 0.0) -> Tensor:
        """Return the number of entries of each column above `least`, [n]."""
        return (self.plan > least).sum(0)


Told = Callable[[int, Tensor], None]
"""Called after each iteration with its number and the plan [m, n] so far."""


class Solver(Protocol):
    """Interface of a method that solves transport problems."""

    def __call__(self, problem: Transport, told: Told | None = None) -> Plan:
        """Return a plan; `told` receives those of the iterations."""
        ...


def feasible(plan: Tensor, problem: Transport) -> Tensor:
    """Return a feasible plan near a non-negative one, [m, n].

    Rows, then columns, with too much mass are scaled down, and the missing mass is added as the product of the rows' and columns'
    deficits: the change is at most twice the violation. Altschuler, Weed and Rigollet (arXiv 1705.09634, algorithm 2).
    """
    rows = plan.sum(1)
    plan = plan * torch.where(rows > problem.source, problem.source / rows.clamp(min=1e-300), 1.0).unsqueeze(1)
    columns = plan.sum(0)
    plan = plan * torch.where(columns > problem.target, problem.target / columns.clamp(min=1e-300), 1.0)
    lacking_rows, lacking_columns = problem.source - plan.sum(1), problem.target - plan.sum(0)
    total = lacking_rows.abs().sum()
    return plan + torch.where(total > 0, torch.outer(lacking_rows, lacking_columns) / total.clamp(min=1e-300), 0.0)


def exact(problem: Transport) -> float:
    """Return the minimum cost, by linear programming.

    Raises:
        ImportError: scipy is not installed; the message names the extra.
    """
    sparse = require("scipy.sparse", "study")
    m, n = problem.cost.shape
    rows = sparse.kron(sparse.identity(m), sparse.csr_matrix([[1.0] * n]))
    columns = sparse.kron(sparse.csr_matrix([[1.0] * m]), sparse.identity(n))
    found = require("scipy.optimize", "study").linprog(
        problem.cost.double().flatten().numpy(),
        A_eq=sparse.vstack([rows, columns]),
        b_eq=torch.cat([problem.source, problem.target]).double().numpy(),
    )
    if found.status != 0:
        raise UserError(f"the linear program was not solved: {found.message}")
    return float(found.fun)


def clouds(points: int = 30, seed: int = 0, shift: float = 1.0) -> Transport:
    """Return the transport between two random point clouds in the plane, with squared distances as costs and equal masses.

    The clouds are normal, with means that differ by `shift` in both coordinates; the costs are scaled to a mean of 1.
    """
    if points < 2:
        raise UserError(f"points={points} is out of range: at least 2")
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn(points, 2, generator=generator, dtype=torch.float64)
    second = torch.randn(points, 2, generator=generator, dtype=torch.float64) * 0.5 + shift
    cost = torch.cdist(first, second).square()
    mass = torch.full((points,), 1 / points, dtype=torch.float64)
    return Transport(mass, mass.clone(), cost / cost.mean())
