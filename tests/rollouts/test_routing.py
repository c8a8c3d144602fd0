"""The routing engine: rows and their columns, rewards that add up to the tour, starts, greedy tours, draws."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.harness import context, reader
from vantage.core import Trajectories, UserError
from vantage.core.protocols import Prompts
from vantage.policies.routing import RoutingPolicy
from vantage.rollouts.routing import MultiStart, RoutingEngine, construct
from vantage.tasks.routing.instances import cvrp, tsp

SMALL: dict[str, Any] = {"width": 16, "layers": 1, "heads": 2, "feedforward": 32}


def sample(policy: RoutingPolicy, nodes: Tensor, count: int, seed: int = 0, **settings: Any) -> Trajectories:
    where = context(policy=policy, method=reader())
    where.generator.manual_seed(seed)
    items: Any = nodes
    return RoutingEngine(policy).sample(Prompts(torch.arange(len(nodes)), items), count, where, **settings)


def way(nodes: Tensor, tour: list[int]) -> float:
    stops = nodes[[*tour, tour[0]], :2]
    return float((stops[1:] - stops[:-1]).norm(dim=-1).sum())


@pytest.mark.parametrize("forced", [False, True])
def test_rewards_of_what_is_learnt_from_add_up_to_minus_the_tour(forced: bool) -> None:
    for policy, nodes in (
        (RoutingPolicy("tsp", **SMALL), tsp(torch.arange(4), 7)),
        (RoutingPolicy("cvrp", **SMALL), cvrp(torch.arange(4), 7, 10)),
    ):
        batch = sample(policy, nodes, 7, forced=forced)
        home = [0] if policy.problem == "cvrp" else []
        for row in range(len(batch)):
            tour = home + batch.action[row, : int(batch.length[row])].tolist()
            learnt = float((batch.reward[row] * batch.mask[row]).sum())
            assert learnt == pytest.approx(-way(batch.observation[row], tour), abs=1e-5)
        assert torch.equal(batch.terminated.sum(1), torch.ones(len(batch)))
        assert torch.equal(batch.terminated.nonzero()[:, 1] + 1, batch.length)
        assert bool(batch.mask[:, 0].any()) != forced
    first = sample(RoutingPolicy("tsp", **SMALL), tsp(torch.arange(4), 7), 7)
    assert torch.equal(first.reward[:, 0], torch.zeros(28))


def test_rows_stand_instance_by_instance_and_decoder_by_decoder() -> None:
    batch = sample(RoutingPolicy("tsp", agents=2, **SMALL), tsp(torch.arange(3), 5), 4, forced=True)
    assert batch.prompt.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert batch.agent.tolist() == [0, 0, 1, 1] * 3
    assert batch.start.tolist() == [0, 1] * 6
    assert batch.group.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert batch.action[:, 0].tolist() == [0, 1] * 6


def test_draws_follow_the_probabilities_and_the_seed() -> None:
    policy = RoutingPolicy("tsp", **SMALL)
    nodes = tsp(torch.arange(1), 4)
    batch = sample(policy, nodes, 20_000)
    assert torch.equal(batch.action, sample(policy, nodes, 20_000).action)
    assert not torch.equal(batch.action, sample(policy, nodes, 20_000, seed=1).action)
    keys, where, counts = torch.unique(batch.action, dim=0, return_inverse=True, return_counts=True)
    assert len(keys) == 24
    logp = torch.zeros(24).index_copy_(0, where, (batch.logp_old * batch.mask).sum(1))
    assert float(logp.exp().sum()) == pytest.approx(1.0, abs=1e-5)
    expected = 20_000 * logp.exp()
    # 23 degrees of freedom: the statistic exceeds 49.7 once in a thousand.
    assert float(((counts - expected).square() / expected).sum()) < 49.7


def test_the_best_of_all_starts_is_no_worse_than_the_greedy_tour() -> None:
    policy = RoutingPolicy("tsp", **SMALL)
    nodes = tsp(torch.arange(30), 9)
    single = construct(policy, nodes, 1).costs("tsp")
    every = construct(policy, nodes, 9, forced=True)
    assert (every.costs("tsp").amin(1) <= single[:, 0] + 1e-5).all()
    assert (every.costs("tsp").amin(1) < single[:, 0] - 1e-3).any()
    # The tour that the policy begins itself goes on as the one that was made to begin there.
    begun = construct(policy, nodes, 1).action[:, 0]
    assert torch.equal(every.action[torch.arange(30), begun[:, 0]], begun)


def test_all_tours_around_a_regular_polygon_that_go_around_tie_at_its_perimeter() -> None:
    angle = torch.arange(8) * (2 * torch.pi / 8)
    ring = torch.stack([angle.cos(), angle.sin()], -1).unsqueeze(0)
    around = (torch.arange(8).unsqueeze(1) + torch.arange(8)) % 8
    from vantage.policies.routing_rules import edges

    cost = edges("tsp", ring, around.unsqueeze(0), torch.full((1, 8), 8)).sum(-1)
    assert cost[0].tolist() == pytest.approx([16 * float(torch.sin(torch.tensor(torch.pi / 8)))] * 8, abs=1e-5)


def test_a_tour_is_never_cut_and_multi_start_is_for_tours() -> None:
    policy = RoutingPolicy("tsp", **SMALL)
    where = context(policy=policy, method=reader())
    where.next_prompts = lambda count: Prompts(torch.arange(count), tsp(torch.arange(count), 6))  # type: ignore[arg-type]
    assert RoutingEngine(policy).advance(3, 2, where).action.shape == (3, 6)
    with pytest.raises(UserError, match="routing task"):
        MultiStart().prepare(context(engine=object(), policy=policy))
    with pytest.raises(UserError, match="starts=-1"):
        MultiStart(starts=-1)
