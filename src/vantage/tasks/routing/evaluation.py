"""Evaluation of routing policies: greedy and sampled tours from every start, symmetries, and a population's contributions."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from vantage.core.errors import UserError
from vantage.policies.routing import RoutingPolicy
from vantage.rollouts.routing import Built, construct
from vantage.tasks.routing.tsplib import Instance, scaled

CELLS = 2**22
"""Largest number of tours times nodes in one batch; bounds the memory."""


def symmetries(nodes: Tensor) -> Tensor:
    """Return the 8 images [8, B, n, F] of instances under the symmetries of the unit square; the first is the instance."""
    x, y, rest = nodes[..., :1], nodes[..., 1:2], nodes[..., 2:]
    images = [(a, b) for x_, y_ in ((x, y), (y, x)) for a in (x_, 1 - x_) for b in (y_, 1 - y_)]
    return torch.stack([torch.cat([*image, rest], -1) for image in images])


def in_parts(policy: RoutingPolicy, nodes: Tensor, generator: torch.Generator | None) -> Iterator[tuple[slice, Built]]:
    """Build tours from every start by every decoder, in batches of instances that fit `CELLS`.

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
    """Return the lengths (greedy, best), each [B, agents], of every decoder's shortest greedy and shortest tour of each instance.

    Args:
        policy: builds the tours, from every start.
        nodes: [B, n, F].
        rounds: tours of each decoder from each start: the first greedy, the others sampled.
        symmetric: the greedy round also covers the 8 symmetries of each instance.
        generator: of the sampled tours.
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
    """Return the length of the shortest greedy tour of a TSPLIB instance over all decoders, starts and 8 symmetries, by the
    file's own distance.

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
