"""One warehouse and several stores: feasible allocations, conservation, gradients, and what it becomes without a limit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import vantage
from vantage.core import Trajectories
from vantage.core.errors import UserError
from vantage.policies.store_network import StoreNetworkPolicy
from vantage.tasks.inventory.demand import Demand, Demands
from vantage.tasks.inventory.engine import scenarios, simulate
from vantage.tasks.inventory.optimum import newsvendor
from vantage.tasks.inventory.systems import Store
from vantage.tasks.inventory.warehouse import (
    Warehouse,
    proportional,
    several,
    softmax_shares,
    stores_alone,
)

NETWORK = "inventory:stores=3,varied=true,lost=true,policy=symmetry-aware,context=16"


def mixed(lost: bool = True, **settings: object) -> Warehouse:
    stores = (
        Store(0, 1.0, 9.0, lost),
        Store(2, 0.5, 4.0, lost, Demand.poisson(3.0)),
        Store(1, 1.5, 7.0, lost, Demand.uniform(0, 4)),
    )
    return Warehouse(stores, **settings)  # type: ignore[arg-type]


def test_allocations_by_hand() -> None:
    orders, stock = torch.tensor([[3.0, 1.0], [3.0, 1.0], [0.0, 0.0]]), torch.tensor([2.0, 9.0, 5.0])
    assert proportional(orders, stock).tolist() == [[1.5, 0.5], [3.0, 1.0], [0.0, 0.0]]
    scores = torch.tensor([[1.0, 1.0], [1.0, 1 + 2**0.5]])
    shares = softmax_shares(scores, torch.tensor([6.0, 1.0]))
    assert shares[0].tolist() == pytest.approx([2.0, 2.0])
    e = torch.tensor(2**0.5).exp().item()
    assert shares[1].tolist() == pytest.approx([1 / (2 + e), e / (2 + e)])


@pytest.mark.parametrize("allocation", ["proportional", "softmax", "direct"])
def test_no_more_is_sent_than_the_warehouse_holds(allocation: str) -> None:
    system = mixed(allocation="softmax" if allocation == "softmax" else "proportional", direct=allocation == "direct")
    torch.manual_seed(0)
    state, action = torch.rand(500, system.width) * 20, torch.randn(500, 4) * 6
    state[:50, system.products * system.places] = 0.0
    held = state[:, system.products * system.places]
    sent, bought = system.orders(state, action)
    assert bool((sent >= 0).all())
    assert bool((bought >= 0).all())
    assert bool((sent.sum(-1) <= held * (1 + 1e-6)).all())
    if allocation != "direct":
        assert bool((bought <= system.limit).all())
    units = system.whole(state.round(), action)
    assert torch.equal(units, units.round())
    assert bool((units[:, :3].sum(-1) <= held.round()).all())
    # Whole units are what the system that takes units carries out.
    again, _ = replace(system, direct=True).orders(state.round(), units)
    torch.testing.assert_close(again, units[:, :3])


def test_periods_by_hand() -> None:
    """Two stores, lead times 1 and 2, warehouse lead time 1: sent units leave the warehouse at once, bought ones arrive next."""
    stores = (Store(1, 1.0, 9.0, True), Store(2, 2.0, 5.0, True))
    system = Warehouse(stores, lead_time=1, holding=0.5, purchase=0.25, direct=True)
    assert system.width == 2 * 3 + 2
    state = torch.tensor([[4.0, 0, 0, 1.0, 2.0, 0, 6.0, 0]])
    # 8 + 4 asked for, 6 there: 4 and 2 are sent, nothing stays; 10 are bought.
    post, cost = system.decide(state, torch.tensor([[8.0, 4.0, 10.0]]))
    assert post.tolist() == [[4, 4, 0, 1, 2, 2, 0, 10]]
    assert cost.tolist() == [0.25 * 10]
    state, cost = system.happen(post, torch.tensor([[3.0, 3.0]]))
    assert cost.tolist() == [1.0 * 1 + 5.0 * 2]
    assert state.tolist() == [[5, 0, 0, 2, 2, 0, 10, 0]]
    post, cost = system.decide(state, torch.tensor([[1.0, 2.0, 0.0]]))
    assert cost.tolist() == [0.5 * 7]
    assert post.tolist() == [[5, 1, 0, 2, 2, 2, 7, 0]]


@pytest.mark.parametrize("lost", [True, False])
def test_units_are_conserved(lost: bool) -> None:
    system = mixed(lost)
    torch.manual_seed(0)
    start, demand = scenarios(system, torch.arange(64), 1, 0)
    state, action = start.double(), torch.randn(64, 4).double() * 3
    demand = demand[:, 0].double()
    _, bought = system.orders(state, action)
    post, _ = system.decide(state, action)
    torch.testing.assert_close(post.sum(-1), state.sum(-1) + bought)
    after, _ = system.happen(post, demand)
    on_hand = system.split(post)[0][..., 0]
    sold = torch.minimum(on_hand, demand) if lost else demand
    torch.testing.assert_close(after.sum(-1), post.sum(-1) - sold.sum(-1))


@pytest.mark.parametrize("lost", [True, False])
def test_a_warehouse_without_limit_leaves_independent_stores(lost: bool) -> None:
    system = replace(mixed(lost), holding=0.0, direct=True)
    levels = torch.tensor([8.0, 11.5, 6.0], dtype=torch.float64)
    start, demand = scenarios(system, torch.arange(40), 25, 1)
    start, demand = start.double(), demand.double()
    start[:, system.products * system.places] = 1e9

    def act(seen: Tensor, state: Tensor) -> Tensor:
        missing = levels - system.split(state)[0].sum(-1)
        return torch.cat([missing, torch.zeros(len(state), 1)], -1)

    joint = simulate(system, act, start, demand)["cost"]
    alone = torch.zeros_like(joint)
    for k, store in enumerate(system.stores):
        own = system.split(start)[0][:, k, : store.lead_time + 1].clone()
        ran = simulate(
            replace(store, direct=True),
            lambda seen, state, k=k: levels[k] - state.sum(-1, keepdim=True),  # type: ignore[misc]
            own,
            demand[..., k : k + 1],
        )
        alone += ran["cost"]
    torch.testing.assert_close(joint, alone, rtol=1e-9, atol=1e-9)


def test_the_bound_is_the_sum_of_the_stores_optima() -> None:
    system = Warehouse((Store(1), Store(2)), direct=True)
    assert stores_alone(system) == pytest.approx(newsvendor(Store(1), 14) + newsvendor(Store(2), 20))


def test_known_demand_costs_nothing_once_the_levels_have_passed_through() -> None:
    stores = tuple(Store(lead, demand=Demand.constant(units), lost=True) for lead, units in ((1, 4), (2, 3)))
    system = Warehouse(stores, lead_time=2, holding=0.3, direct=True)
    ran = simulate(
        system,
        lambda seen, state: torch.tensor([[4.0, 3.0, 7.0]]),
        torch.tensor([[4.0, 0, 0, 3.0, 3.0, 0, 7.0, 7.0, 0]]),
        torch.tensor([[[4.0, 3.0]]]).expand(1, 12, 2),
    )
    assert ran["cost"].tolist() == [[0.0] * 12]


@pytest.mark.parametrize("allocation", ["proportional", "softmax"])
def test_the_gradient_is_the_finite_difference_on_the_same_scenarios(allocation: str) -> None:
    task = vantage.task(f"{NETWORK},allocation={allocation},periods=12")
    policy = task.make_policy(seed=1, hidden=(8, 8)).double()
    start, demand = scenarios(task.system, torch.arange(16), 12, 0)
    no = torch.zeros(16, 12, dtype=torch.bool)
    batch = Trajectories({"start": start.double(), "demand": demand.double(), "mask": ~no, "truncated": no})
    torch.manual_seed(0)
    weights = [p for name, p in policy.named_parameters() if name != "log_std"]
    direction = [torch.randn_like(p) for p in weights]
    gradients = torch.autograd.grad(-task.replay(policy, batch).mean(), weights)
    slope = sum(float((g * d).sum()) for g, d in zip(gradients, direction, strict=True))

    @torch.no_grad()
    def moved(step: float) -> float:
        for p, d in zip(weights, direction, strict=True):
            p.add_(step * d)
        value = float(-task.replay(policy, batch).mean())
        for p, d in zip(weights, direction, strict=True):
            p.sub_(step * d)
        return value

    step = 1e-7
    assert slope == pytest.approx((moved(step) - moved(-step)) / (2 * step), rel=1e-4, abs=1e-6)
    assert abs(slope) > 1e-3


def test_stores_that_look_alike_get_the_same_and_weights_do_not_grow_with_them() -> None:
    features = [[5.0, 2.2, 9.0, 2.0]] * 2 + [[3.0, 1.7, 9.0, 2.0]]
    policy = StoreNetworkPolicy(features, 3, 4, context=8, seed=0)
    seen = torch.rand(6, 3 * 3 + 4) * 10
    seen[:, 3:6] = seen[:, :3]
    decided = policy.decisions(seen)
    assert decided.shape == (6, 4)
    torch.testing.assert_close(decided[:, 0], decided[:, 1], rtol=1e-6, atol=1e-7)
    seen[:, 6:9] = seen[:, :3]
    other = policy.decisions(seen)
    assert not torch.allclose(other[:, 0], other[:, 2])
    larger = StoreNetworkPolicy(features * 2, 3, 4, context=8)
    count = [sum(p.numel() for p in made.store.parameters()) for made in (policy, larger)]
    assert count[0] == count[1]


def test_without_context_stores_may_be_permuted() -> None:
    policy = StoreNetworkPolicy([[5.0, 2.2, 9.0, 2.0], [3.0, 1.7, 4.0, 1.0]], 3, 4, context=8, seed=0)
    swapped = StoreNetworkPolicy([[3.0, 1.7, 4.0, 1.0], [5.0, 2.2, 9.0, 2.0]], 3, 4, context=8, seed=0)
    for made in (policy, swapped):
        torch.nn.init.zeros_(made.context.linears[0].weight)
    seen = torch.rand(5, 10) * 10
    over = torch.cat([seen[:, 3:6], seen[:, :3], seen[:, 6:]], -1)
    one, other = policy.decisions(seen), swapped.decisions(over)
    torch.testing.assert_close(one, other[:, [1, 0, 2]])


def test_demands_of_several_products() -> None:
    each = (Demand.poisson(5.0), Demand.uniform(0, 3))
    uniform = torch.rand(100_000, 2 * 3, generator=torch.Generator().manual_seed(0))
    plain = Demands(each).draw(uniform)
    assert torch.equal(plain[:, 2], each[0].draw(uniform[:, 2]))
    assert torch.equal(plain[:, 3], each[1].draw(uniform[:, 3]))
    joint = Demands(each, 0.5).draw(uniform)
    assert joint[:, ::2].mean().item() == pytest.approx(5.0, abs=0.02)
    assert joint[:, 1::2].mean().item() == pytest.approx(1.5, abs=0.02)
    correlation = torch.corrcoef(joint.T)
    assert 0.42 < float(correlation[0, 1]) < 0.5
    assert abs(float(correlation[0, 3])) < 0.02
    assert float(torch.corrcoef(plain.T)[0, 1]) == pytest.approx(0.0, abs=0.02)
    with pytest.raises(UserError, match="correlation=1"):
        Demands(each, 1.0)


def test_varied_stores_differ_within_the_ranges_of_the_paper() -> None:
    stores = several(Store(2), 40, varied=True)
    assert {store.lead_time for store in stores} == {2, 3}
    assert all(2.5 <= store.demand.mean <= 7.5 for store in stores)
    assert all(6.3 <= store.penalty <= 11.7 and 0.7 <= store.holding <= 1.3 for store in stores)
    assert len({store.penalty for store in stores}) > 35
    again = several(Store(2), 5, varied=True)
    assert [store.penalty for store in again] == [store.penalty for store in stores[:5]]


@pytest.mark.parametrize("policy", ["symmetry-aware", "network"])
def test_hdpo_makes_the_network_cheaper(policy: str) -> None:
    small = {"context": 16} if policy == "symmetry-aware" else {}
    task = vantage.task(
        "inventory:stores=2,lost=true,lead_time=1,warehouse_lead_time=1",
        options={"policy": policy, "hidden": (16, 16), "periods": 20, "evaluated": 60, "burn_in": 20, **small},
    )
    method = vantage.method("hdpo", scenarios=64, lr=2e-2, anneal=True, max_grad_norm=1.0)
    run = vantage.train(method, task, steps=64 * 20 * 30, evaluate_samples=32)
    over = [line["eval/over_bound"] for line in run.outcome.history if "eval/over_bound" in line]
    assert over[0] > 10
    assert 0.0 < over[-1] < 0.6


def test_a_score_function_learns_there_too_and_the_folder_is_read_again(tmp_path: Path) -> None:
    run = vantage.train(
        "reinforce",
        "inventory:stores=2,lost=true,policy=symmetry-aware,context=8,periods=10,evaluated=30,burn_in=10",
        steps=160,
        settings={"episodes": 8},
        out=tmp_path / "a",
        evaluate_samples=4,
    )
    assert vantage.evaluate(tmp_path / "a", samples=4, seed=1)["cost"] == pytest.approx(run.metrics[-1]["eval/cost"])
    held = StoreNetworkPolicy.load(tmp_path / "a" / "model")
    assert held.features[0].tolist() == pytest.approx([5.0, 5.0**0.5, 9.0, 2.0], rel=1e-6)


def test_refusals() -> None:
    with pytest.raises(UserError, match="stores=0"):
        vantage.task("inventory:stores=0")
    with pytest.raises(UserError, match="goes with a warehouse"):
        vantage.task("inventory:policy=symmetry-aware")
    with pytest.raises(UserError, match="base-stock goes with a store"):
        vantage.task("inventory:stores=2,policy=base-stock")
    with pytest.raises(UserError, match="allocation='fair'"):
        vantage.task("inventory:stores=2,allocation=fair")
    with pytest.raises(UserError, match="lost in all stores"):
        Warehouse((Store(1, lost=True), Store(1)))
    with pytest.raises(UserError, match="lead_time=0"):
        Warehouse((Store(1),), lead_time=0)
    with pytest.raises(UserError, match="correlatoin"):
        vantage.task("inventory:stores=2,correlatoin=0.5")
