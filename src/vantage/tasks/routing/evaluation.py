"""How a routing policy is judged: greedy tours from every start, further draws, symmetries, and who of a population wins."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from vantage.core.errors import UserError
from vantage.policies.routing import RoutingPolicy
from vantage.rollouts.routing import Built, construct
from vantage.tasks.routing.tsplib import Instance, scaled

CELLS = 2**22
"""Products of tours and nodes that are worked on at once; bounds the memory."""


def symmetries(nodes: Tensor) -> Tensor:
    """Return the 8 images [8, B, n, F] of instances under the symmetries of the unit square; the first is the instance."""
    x, y, rest = nodes[..., :1], nodes[..., 1:2], nodes[..., 2:]
    images = [(a, b) for x_, y_ in ((x, y), (y, x)) for a in (x_, 1 - x_) for b in (y_, 1 - y_)]
    return torch.stack([torch.cat([*image, rest], -1) for image in images])


def in_parts(policy: RoutingPolicy, nodes: Tensor, generator: torch.Generator | None) -> Iterator[tuple[slice, Built]]:
    """Build tours from every start by every decoder, so many instances at once as memory allows.

    Yields the slice of the instances [B, n, F], and their tours.
    """
    size = nodes.shape[1]
    starts = size - (1 if policy.problem == "cvrp" else 0)
    each = max(1, CELLS // (starts * policy.agents * size))
    for begin in range(0, len(nodes), each):
        part = slice(begin, begin + each)
        yield part, construct(policy, nodes[part], starts, forced=True, generator=generator)


def best_costs(
    policy: RoutingPolicy, nodes: Tensor, *, rounds: int = 1, symmetric: bool = False, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return (greedy, best), each [B, agents]: every decoder's shortest tour of each instance, greedily and at all.

    Args:
        policy: builds the tours, from every start.
        nodes: [B, n, F].
        rounds: tours of each decoder from each start: the first greedy, the others drawn.
        symmetric: the greedy round goes over the 8 symmetries of each instance as well.
        generator: of the draws.
    """
    nodes = nodes.to(policy.device)
    images = symmetries(nodes).flatten(0, 1) if symmetric else nodes
    greedy = _round(policy, images, None).view(-1, len(nodes), policy.agents).amin(0)
    best = greedy
    for _ in range(rounds - 1):
        best = torch.minimum(best, _round(policy, nodes, generator))
    return greedy, best


def _round(policy: RoutingPolicy, nodes: Tensor, generator: torch.Generator | None) -> Tensor:
    found = [
        built.costs(policy.problem).amin(-1).view(-1, policy.agents) for _, built in in_parts(policy, nodes, generator)
    ]
    return torch.cat(found)


def wins(cost: Tensor) -> Tensor:
    """Return the share of instances [K] that each agent of a population wins, from costs [B, K]; ties go to the first."""
    return torch.bincount(cost.argmin(1), minlength=cost.shape[1]) / len(cost)


def contributions(cost: Tensor) -> Tensor:
    """Return how much longer the population's best tours would be without each agent [K], from costs [B, K], K at least 2."""
    least = cost.topk(2, 1, largest=False)
    alone = torch.zeros_like(cost).scatter_(
        1, least.indices[:, :1], (least.values[:, 1] - least.values[:, 0]).unsqueeze(1)
    )
    return alone.mean(0)


def solve_instance(policy: RoutingPolicy, instance: Instance) -> int:
    """Return the length of the shortest of all greedy tours of a TSPLIB instance, by every decoder, from every start, of its 8
    symmetries, measured as the file says.

    Raises:
        UserError: the policy was made for another problem.
    """
    if policy.problem != "tsp":
        raise UserError(f"{instance.name} is a tsp, and the policy was made for {policy.problem}")
    table = instance.distances().to(policy.device)
    images = symmetries(scaled(instance.places).unsqueeze(0).to(policy.device)).flatten(0, 1)
    lengths = []
    for _, built in in_parts(policy, images, None):
        following = built.action.roll(-1, -1)
        lengths.append(table[built.action, following].sum(-1).amin())
    return int(torch.stack(lengths).amin())
