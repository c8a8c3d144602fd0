"""Test-time search with a routing policy: greedy tours select the starts of sampled ones (arXiv 2210.03475)."""

from __future__ import annotations

import torch
from torch import Tensor

from vantage.core.errors import UserError
from vantage.policies.routing import RoutingPolicy
from vantage.policies.routing_rules import Tours, edges, start_nodes
from vantage.rollouts.routing import construct


@torch.no_grad()
def search(
    policy: RoutingPolicy, nodes: Tensor, *, rollouts: int = 200, pairs: int = 0, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return the lengths (greedy, best), each [B], of the shortest greedy tour of each instance and of the shortest tour found.

    Every agent builds a greedy tour from every start. The best `pairs` of an agent and a start then sample `rollouts` tours each.
    The number of tours of an instance is agents * starts + pairs * rollouts.

    Args:
        policy: policy with K agents.
        nodes: instances [B, n, F].
        rollouts: sampled tours per pair, at least 0.
        pairs: number of pairs, at most agents * starts; 0 for K.
        generator: generator of the samples, on the policy's device.

    Raises:
        UserError: `rollouts` or `pairs` is out of range.
    """
    nodes = nodes.to(policy.device)
    count, size = nodes.shape[:2]
    starts = size - (1 if policy.problem == "cvrp" else 0)
    pairs = pairs or policy.agents
    if rollouts < 0 or not 1 <= pairs <= policy.agents * starts:
        raise UserError(
            f"search: rollouts={rollouts}, pairs={pairs} are out of range: at least 0, and 1 to {policy.agents * starts}"
        )
    costs = construct(policy, nodes, starts, forced=True).costs(policy.problem).view(count, -1)
    greedy = costs.amin(1)
    if not rollouts:
        return greedy, greedy
    chosen = costs.topk(pairs, 1, largest=False).indices.flatten()
    instance = torch.arange(count, device=nodes.device).repeat_interleave(pairs)
    first = start_nodes(policy.problem, starts, size, nodes.device)[chosen % starts]
    drawn = _draw(policy, nodes, instance, chosen // starts, first, rollouts, generator)
    return greedy, torch.minimum(greedy, drawn.view(count, -1).amin(1))


def _draw(
    policy: RoutingPolicy,
    nodes: Tensor,
    instance: Tensor,
    agent: Tensor,
    first: Tensor,
    rollouts: int,
    generator: torch.Generator | None,
) -> Tensor:
    """Return the lengths [C, rollouts] of tours of C triples (instance, agent, first node)."""
    memory = policy.remember(nodes).select(instance * policy.agents + agent)
    cells = nodes[instance]
    tours = Tours(policy.problem, cells, rollouts)
    node = first.unsqueeze(1).expand(-1, rollouts)
    actions: list[Tensor] = []
    length = torch.zeros_like(node)
    finished = tours.finished()
    while not bool(finished.all()):
        if actions:
            chances = policy.decide(memory, tours.situation())[0].softmax(-1)
            node = torch.multinomial(chances.flatten(0, 1), 1, generator=generator).view_as(node)
        length = length + ~finished
        tours.visit(node)
        actions.append(node)
        finished = tours.finished()
    return edges(policy.problem, cells, torch.stack(actions, -1), length).sum(-1)
