"""Feasible next nodes and costs of tours of TSP and CVRP, as tensor operations.

An instance is one tensor of nodes [n, F]. TSP: F = 2, coordinates. CVRP: F = 3, coordinates and demand in whole units; node
0 is the depot, and its third number is the vehicle's capacity. Demands are whole so that loads add up exactly, in whatever
order they are added.

A decision is the node visited next. A TSP tour has n decisions. A CVRP tour begins at the depot and visits it between
routes; it ends with the last customer. The closing edge (to the first node, to the depot) belongs to the last decision.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vantage.core.errors import UserError, nearest

PROBLEMS = {"tsp": 2, "cvrp": 3}
"""Problem -> number of features F of a node."""


def check_problem(problem: str) -> None:
    """Raise a UserError unless the problem is known."""
    if problem not in PROBLEMS:
        raise UserError(f"problem={problem!r} is not known{nearest(problem, PROBLEMS)} (known: {', '.join(PROBLEMS)})")


def start_nodes(problem: str, count: int, nodes: int, device: torch.device | None = None) -> Tensor:
    """Return `count` start nodes of tours [count] in order, without the depot; after the last node they repeat."""
    first = 1 if problem == "cvrp" else 0
    return torch.arange(count, device=device) % (nodes - first) + first


@dataclass(frozen=True)
class Situation:
    """State before a decision, for any number R of decisions on each of C instances.

    Attributes:
        first: first node of the tour [C, R]; -1 before it is chosen.
        last: current node of the tour [C, R]; before the first decision -1, in CVRP the depot.
        remaining: remaining load of the vehicle, units [C, R]; None in TSP.
        allowed: nodes that may be visited next [C, R, n] bool; at least one.
    """

    first: Tensor
    last: Tensor
    remaining: Tensor | None
    allowed: Tensor

    def at(self, part: slice) -> Situation:
        """Return the decisions of a slice of R."""
        remaining = None if self.remaining is None else self.remaining[:, part]
        return Situation(self.first[:, part], self.last[:, part], remaining, self.allowed[:, part])


class Tours:
    """Tours under construction, R on each of C instances, updated in place.

    Args:
        problem: "tsp" or "cvrp".
        nodes: [C, n, F].
        rows: R.
    """

    def __init__(self, problem: str, nodes: Tensor, rows: int) -> None:
        count, size = nodes.shape[:2]
        self.routes = problem == "cvrp"
        self.left = torch.ones(count, rows, size, dtype=torch.bool, device=nodes.device)
        self.first = torch.full((count, rows), -1, device=nodes.device)
        self.last = torch.full((count, rows), 0 if self.routes else -1, device=nodes.device)
        self.remaining: Tensor | None = None
        if self.routes:
            self.left[..., 0] = False
            self.demand, self.capacity = nodes[..., 2].clone(), nodes[:, :1, 2]
            self.demand[:, 0] = 0
            self.remaining = self.capacity.expand(count, rows).clone()

    def situation(self) -> Situation:
        """Return the state before the next decision. A finished CVRP tour may only stay at the depot."""
        if not self.routes:
            return Situation(self.first, self.last, None, self.left)
        assert self.remaining is not None
        allowed = self.left & (self.demand.unsqueeze(1) <= self.remaining.unsqueeze(-1))
        allowed[..., 0] = (self.last != 0) | self.finished()
        return Situation(self.first, self.last, self.remaining, allowed)

    def visit(self, node: Tensor) -> None:
        """Visit a node on each tour [C, R]."""
        self.first = torch.where(self.first < 0, node, self.first)
        self.last = node
        self.left.scatter_(-1, node.unsqueeze(-1), False)
        if self.remaining is not None:
            spent = self.remaining - self.demand.gather(1, node)
            self.remaining = torch.where(node == 0, self.capacity, spent)

    def finished(self) -> Tensor:
        """Return whether every node is visited [C, R]."""
        return ~self.left.any(-1)


def replay(problem: str, nodes: Tensor, action: Tensor, length: Tensor) -> Situation:
    """Return the state before every decision of whole tours, without a loop over decisions.

    Args:
        problem: "tsp" or "cvrp".
        nodes: [C, n, F].
        action: [C, R, T].
        length: decisions of each tour [C, R].

    Returns:
        State of R * T decisions on each instance, in row-major order.
    """
    count, rows, steps = action.shape
    size = nodes.shape[1]
    step = torch.arange(steps, device=action.device)
    first = action[..., :1].expand(-1, -1, steps).clone()
    first[..., 0] = -1
    before = torch.full_like(action[..., :1], 0 if problem == "cvrp" else -1)
    last = torch.cat([before, action[..., :-1]], -1)
    # Step of each node in its tour; earlier decisions could still choose it.
    place = torch.full((count, rows, size), steps, device=action.device).scatter_(-1, action, step.expand_as(action))
    allowed = place.unsqueeze(2) >= step.unsqueeze(-1)
    remaining: Tensor | None = None
    if problem == "cvrp":
        demand = nodes[..., 2].clone()
        demand[:, 0] = 0
        taken = demand.gather(1, action.flatten(1)).view_as(action).cumsum(-1)
        # The amount delivered by the last visit of the depot is the running maximum of the cumulative sums at the depot.
        home = torch.where(action == 0, taken, 0.0).cummax(-1).values
        used = torch.cat([torch.zeros_like(taken[..., :1]), (taken - home)[..., :-1]], -1)
        remaining = nodes[:, :1, 2].unsqueeze(-1) - used
        allowed = allowed & (demand[:, None, None] <= remaining.unsqueeze(-1))
        over = step >= length.unsqueeze(-1)
        allowed[..., 0] = (last != 0) | over
        allowed[..., 1:] &= ~over.unsqueeze(-1)
        remaining = remaining.flatten(1)
    return Situation(first.flatten(1), last.flatten(1), remaining, allowed.flatten(1, 2))


def edges(problem: str, nodes: Tensor, action: Tensor, length: Tensor) -> Tensor:
    """Return the cost of each decision of whole tours, [C, R, T]: the edge to the node, and for the last one the closing edge.

    Args:
        problem: "tsp" or "cvrp".
        nodes: [C, n, F].
        action: [C, R, T].
        length: decisions of each tour [C, R], at least 1.
    """
    count, rows, steps = action.shape
    place = nodes[..., :2].gather(1, action.flatten(1).unsqueeze(-1).expand(-1, -1, 2)).view(count, rows, steps, 2)
    home = nodes[:, None, :1, :2].expand(-1, rows, -1, -1) if problem == "cvrp" else place[:, :, :1]
    way = torch.linalg.vector_norm(place - torch.cat([home, place[:, :, :-1]], 2), dim=-1)
    way = way * (torch.arange(steps, device=action.device) < length.unsqueeze(-1))
    end = (length - 1).unsqueeze(-1)
    back = torch.linalg.vector_norm(place.gather(2, end.unsqueeze(-1).expand(-1, -1, -1, 2)) - home, dim=-1)
    return way.scatter_add_(-1, end, back)
