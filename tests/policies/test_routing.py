"""The routing policy: what it judges is what it did, tours are feasible, and the order of the nodes means nothing."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.harness import context
from vantage.core import Trajectories, UserError
from vantage.core.protocols import Prompts
from vantage.policies.routing import RoutingPolicy
from vantage.policies.routing_rules import Tours, edges, replay
from vantage.rollouts.routing import RoutingEngine
from vantage.tasks.routing.instances import cvrp, tsp

SMALL: dict[str, Any] = {"width": 16, "layers": 2, "heads": 4, "feedforward": 32}
EVERYTHING = frozenset({"logp", "entropy", "value", "hidden", "distribution"})


def instances(problem: str, count: int = 5) -> Tensor:
    return tsp(torch.arange(count), 8) if problem == "tsp" else cvrp(torch.arange(count), 8, 12)


def policy_of(problem: str, agents: int = 1, seed: int = 0, **settings: Any) -> RoutingPolicy:
    policy = RoutingPolicy(problem, agents=agents, critic=True, seed=seed, **{**SMALL, **settings})
    with torch.no_grad():
        for parameter in policy.decoder.values():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return policy


def rollout(policy: RoutingPolicy, nodes: Tensor, count: int, **settings: Any) -> Trajectories:
    where = context(policy=policy, method=SimpleNamespace(wants=frozenset({"value"})))
    items: Any = nodes
    ids = torch.arange(len(nodes)) * 7
    return RoutingEngine(policy).sample(Prompts(ids, items), count, where, **settings)


@pytest.mark.parametrize("problem", ["tsp", "cvrp"])
@pytest.mark.parametrize("agents", [1, 3])
@pytest.mark.parametrize("forced", [False, True])
@pytest.mark.parametrize("cached", [True, False])
def test_what_it_judges_is_what_it_did(problem: str, agents: int, forced: bool, cached: bool) -> None:
    policy = policy_of(problem, agents)
    batch = rollout(policy, instances(problem), 4 * agents, forced=forced)
    policy.cached = cached
    judged = policy.evaluate(batch, EVERYTHING)
    mask = batch.mask
    assert mask.sum() > 5 * 4 * agents
    assert torch.allclose(judged.logp[mask], batch.logp_old[mask], atol=1e-5)
    assert torch.allclose(judged.value[mask], batch.value[mask], atol=1e-5)
    chosen = judged.distribution.log_softmax(-1).gather(-1, batch.action.unsqueeze(-1)).squeeze(-1)
    assert torch.allclose(chosen[mask], judged.logp[mask])
    probability = judged.distribution.softmax(-1)
    entropy = -torch.where(probability > 0, probability * probability.clamp(min=1e-30).log(), 0.0).sum(-1)
    assert torch.allclose(judged.entropy, entropy, atol=1e-5)
    # The rows in another order, some of them missing: the same figures.
    order = torch.randperm(len(batch), generator=torch.Generator().manual_seed(0))[:-3]
    some = policy.evaluate(batch.select(order), EVERYTHING)
    assert torch.allclose(some.logp, judged.logp[order], atol=1e-5)
    assert torch.allclose(some.hidden, judged.hidden[order], atol=1e-5)


def test_gradients_agree_whether_rows_come_whole_or_in_no_order() -> None:
    policy = policy_of("cvrp", 2)
    batch = rollout(policy, instances("cvrp"), 8, forced=True)
    order = torch.randperm(len(batch), generator=torch.Generator().manual_seed(0))
    gradients = []
    for some in (batch, batch.select(order)):
        policy.zero_grad()
        judged = policy.evaluate(some, frozenset({"logp", "entropy"}))
        ((judged.logp + judged.entropy) * some.mask * some.prompt.unsqueeze(1)).sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None]))
    assert torch.isfinite(gradients[0]).all()
    assert gradients[0].abs().sum() > 0
    # Sums of thousands of terms that cancel: what is small in them is rounding of what is large.
    scale = float(gradients[0].abs().max())
    assert float((gradients[0] - gradients[1]).abs().max()) < 1e-5 * scale


@pytest.mark.parametrize("problem", ["tsp", "cvrp"])
def test_the_order_of_the_nodes_means_nothing(problem: str) -> None:
    policy = policy_of(problem).double()
    nodes = instances(problem)
    fixed = 1 if problem == "cvrp" else 0
    order = torch.cat([torch.arange(fixed), torch.randperm(nodes.shape[1] - fixed) + fixed])
    assert torch.allclose(policy.encode(nodes)[:, order], policy.encode(nodes[:, order]), atol=1e-9)
    # So does the probability of a tour whose nodes have other numbers.
    batch = rollout(policy, nodes, 4)
    renamed = torch.argsort(order)[batch.action]
    moved = batch.replace(observation=batch.observation[:, order], action=renamed)
    want = frozenset({"logp"})
    mask = batch.mask
    assert torch.allclose(policy.evaluate(moved, want).logp[mask], policy.evaluate(batch, want).logp[mask], atol=1e-9)


def test_an_instance_alone_has_the_encoding_that_it_has_among_others() -> None:
    policy = policy_of("tsp")
    nodes = instances("tsp")
    assert torch.allclose(policy.encode(nodes)[2:3], policy.encode(nodes[2:3]), atol=1e-6)


@pytest.mark.parametrize("problem", ["tsp", "cvrp"])
@pytest.mark.parametrize("greedy", [False, True])
def test_tours_are_feasible(problem: str, greedy: bool) -> None:
    nodes = tsp(torch.arange(50), 12) if problem == "tsp" else cvrp(torch.arange(50), 12, 11)
    batch = rollout(policy_of(problem), nodes, 12, greedy=greedy, forced=True)
    first = 1 if problem == "cvrp" else 0
    for row in range(len(batch)):
        tour = batch.action[row, : int(batch.length[row])].tolist()
        assert sorted(node for node in tour if node >= first) == list(range(first, 12 + first))
        assert tour[0] == batch.start[row] + first
        if problem == "cvrp":
            demand, load = batch.observation[row, :, 2].tolist(), 11.0
            assert tour[-1] != 0
            for before, node in zip([0, *tour], tour, strict=False):
                assert not before == node == 0
                load = demand[0] if node == 0 else load - demand[node]
                assert load >= 0


@pytest.mark.parametrize("problem", ["tsp", "cvrp"])
def test_situations_replayed_are_those_met_on_the_way(problem: str) -> None:
    nodes = instances(problem)
    batch = rollout(policy_of(problem), nodes, 6)
    action, length = batch.action.view(5, 6, -1), batch.length.view(5, 6)
    now = replay(problem, nodes, action, length)
    tours = Tours(problem, nodes, 6)
    steps = action.shape[-1]
    for step in range(steps):
        met, again = tours.situation(), now.at(slice(step, None, steps))
        assert torch.equal(met.allowed, again.allowed)
        assert torch.equal(met.last, again.last)
        assert torch.equal(met.first, again.first)
        if met.remaining is not None:
            assert again.remaining is not None
            alive = step < length
            assert torch.equal(met.remaining[alive], again.remaining[alive])
        tours.visit(action[..., step])


def test_edges_of_tours_done_by_hand() -> None:
    square = torch.tensor([[[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]])
    tour = torch.tensor([[[1, 2, 3, 0], [0, 2, 1, 3]]])
    length = torch.full((1, 2), 4)
    found = edges("tsp", square, tour, length)
    assert found[0, 0].tolist() == pytest.approx([0, 1, 1, 2])
    root = 2**0.5
    assert found[0, 1].tolist() == pytest.approx([0, root, 1, root + 1])
    # Depot in the corner, capacity 2, three customers who want 1 each: two routes, and a row that is padded.
    shop = torch.cat([square, torch.tensor([[[2.0], [1.0], [1.0], [1.0]]])], -1)
    tours = torch.tensor([[[1, 2, 0, 3, 0], [1, 0, 2, 0, 3]]])
    found = edges("cvrp", shop, tours, torch.tensor([[4, 5]]))
    assert found[0, 0].tolist() == pytest.approx([1, 1, root, 2, 0])
    assert found[0, 1].tolist() == pytest.approx([1, 1, root, root, 2])


@pytest.mark.parametrize("problem", ["tsp", "cvrp"])
def test_saved_and_loaded_it_is_the_same(problem: str, tmp_path: Path) -> None:
    policy = policy_of(problem, 2)
    policy.save(tmp_path / "m")
    again = RoutingPolicy.load(tmp_path / "m")
    assert again.agents == 2
    batch = rollout(policy, instances(problem), 4)
    want = frozenset({"logp", "value"})
    assert torch.equal(again.evaluate(batch, want).logp, policy.evaluate(batch, want).logp)
    assert not any(p.requires_grad for p in policy.frozen().parameters())


def test_clones_are_the_decoder_that_they_were_made_of() -> None:
    policy = policy_of("tsp")
    alone = policy.encode(instances("tsp")).detach()
    batch = rollout(policy, instances("tsp"), 8, greedy=True, forced=True)
    policy.populate(3)
    crowd = rollout(policy, instances("tsp"), 24, greedy=True, forced=True)
    assert torch.equal(crowd.action.view(5, 3, 8, 8)[:, 1], batch.action.view(5, 8, 8))
    assert torch.equal(policy.encode(instances("tsp")), alone)
    with torch.no_grad():
        policy.decoder["read"][2].mul_(-1)
    policy.clone_first()
    assert torch.equal(policy.decoder["read"][2], policy.decoder["read"][0])
    with pytest.raises(UserError, match="population of 3"):
        policy.populate(4)


def test_bad_input(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean cvrp"):
        RoutingPolicy("cvr")
    with pytest.raises(UserError, match="heads=3 must divide"):
        RoutingPolicy("tsp", heads=3)
    with pytest.raises(UserError, match=r"config\.json is missing"):
        RoutingPolicy.load(tmp_path)
    with pytest.raises(UserError, match="evenly among 2"):
        rollout(policy_of("tsp", 2), instances("tsp"), 3)
    with pytest.raises(UserError, match="no critic"):
        RoutingPolicy("tsp", **SMALL).evaluate(rollout(policy_of("tsp"), instances("tsp"), 2), frozenset({"value"}))
