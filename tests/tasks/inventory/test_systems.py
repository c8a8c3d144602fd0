"""The simulators: the card's steps by hand, conservation, gradients; the best policies against closed forms and literature."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import vantage
from vantage.core.errors import UserError
from vantage.tasks.inventory.demand import Demand
from vantage.tasks.inventory.engine import scenarios, simulate, uniform_numbers
from vantage.tasks.inventory.optimum import base_stock_level, newsvendor, optimum
from vantage.tasks.inventory.systems import LotSizing, Store


def run(store: Store, start: list[float], orders: list[float], demand: list[float]) -> tuple[list[float], Tensor]:
    planned = iter(orders)
    ran = simulate(
        store,
        lambda seen, state: torch.tensor([[next(planned)]], dtype=torch.float64),
        torch.tensor([start], dtype=torch.float64),
        torch.tensor(demand, dtype=torch.float64).view(1, -1, 1),
    )
    return ran["cost"][0].tolist(), ran["state"][0]


def test_periods_of_a_store_by_hand() -> None:
    # On hand 3, then 2 arriving, lead time 2: the first order is on hand before the third demand.
    cost, state = run(Store(2, 1.0, 9.0, True, direct=True), [3, 2, 0], [4, 1, 0], [5, 1, 4])
    assert cost == [9 * 2, 1 * 1, 9 * 0 + 1 * 1]
    assert state.tolist() == [2, 0, 0]
    cost, state = run(Store(2, 1.0, 9.0, False, direct=True), [3, 2, 0], [4, 1, 0], [5, 1, 4])
    assert cost == [18, 9 * 1, 9 * 1]
    assert state.tolist() == [0, 0, 0]


@pytest.mark.parametrize("lost", [True, False])
@pytest.mark.parametrize("lead", [0, 1, 3])
def test_stock_changes_by_orders_less_sales(lead: int, lost: bool) -> None:
    store = Store(lead, lost=lost, direct=True)
    torch.manual_seed(0)
    state, demand = torch.rand(64, lead + 1).double() * 8, torch.randint(0, 12, (64, 1)).double()
    state[:, -1] *= lead == 0
    order = torch.rand(64, 1).double() * 6
    post, _ = store.decide(state, order)
    after, cost = store.happen(post, demand)
    sold = torch.minimum(post[:, 0], demand[:, 0]) if lost else demand[:, 0]
    torch.testing.assert_close(after.sum(-1), state.sum(-1) + order[:, 0] - sold)
    left = post[:, 0] - demand[:, 0]
    torch.testing.assert_close(cost, left.clamp(min=0) + 9 * (-left).clamp(min=0))


@pytest.mark.parametrize("lost", [True, False])
def test_known_demand_costs_nothing_once_the_level_has_passed_through(lost: bool) -> None:
    store = Store(2, demand=Demand.constant(4), lost=lost, direct=True)
    demand = torch.full((1, 10, 1), 4.0)
    ran = simulate(
        store, lambda seen, state: (12 - state.sum(-1, keepdim=True)).clamp(min=0), torch.zeros(1, 3), demand
    )
    assert ran["cost"][0, 4:].tolist() == [0.0] * 6
    assert ran["cost"][0, 0] > 0


def test_levels_of_the_card_and_the_cost_by_simulation() -> None:
    assert base_stock_level(Store(1)) == 14
    assert base_stock_level(Store(2)) == 20
    store = Store(2, direct=True)
    start, demand = scenarios(store, torch.arange(500), 600, 3)
    ran = simulate(store, lambda seen, state: (20 - state.sum(-1, keepdim=True)).clamp(min=0), start.round(), demand)
    assert float(ran["cost"][:, 20:].mean()) == pytest.approx(newsvendor(store, 20), rel=0.01)
    costs = [newsvendor(store, level) for level in range(10, 30)]
    assert min(costs) == costs[10]


@pytest.mark.parametrize(
    ("lead", "penalty", "cost"),
    [(1, 4, 4.04), (1, 9, 5.44), (1, 19, 6.68), (1, 39, 7.84), (2, 4, 4.40), (2, 9, 6.09), (2, 19, 7.66)],
)
def test_lost_sales_optimum_equals_the_published_table(lead: int, penalty: float, cost: float) -> None:
    """Zipkin, "Old and new methods for lost-sales inventory systems" (Operations Research 56, 2008): Poisson demand of mean 5."""
    found = optimum(Store(lead, penalty=penalty, lost=True), 0)
    assert found is not None
    assert found.cost == pytest.approx(cost, abs=0.006)


def test_the_computed_policies_cost_what_is_computed() -> None:
    system = Store(2, lost=True)
    best = optimum(system, 0)
    assert best is not None
    start, demand = scenarios(best.system, torch.arange(300), 600, 5)
    ran = simulate(best.system, lambda seen, state: best.act(state, 0), start.round(), demand)
    assert float(ran["cost"][:, 50:].mean()) == pytest.approx(best.cost, rel=0.015)
    machines = LotSizing()
    ideal = optimum(machines, 100)
    assert ideal is not None
    left = iter(range(100, 0, -1))
    start, demand = scenarios(machines, torch.arange(2000), 100, 5)
    ran = simulate(machines, lambda seen, state: ideal.act(state, next(left)), start, demand)
    assert float(ran["cost"].mean()) == pytest.approx(ideal.cost, rel=0.01)


def test_without_lead_time_the_level_is_the_newsvendor_quantile_lost_or_not() -> None:
    best = optimum(Store(0, lost=True), 0)
    assert best is not None
    assert best.cost == pytest.approx(newsvendor(Store(0), Demand.poisson(5.0).quantile(0.9)))


def test_newsvendor_gradient_is_that_of_the_card() -> None:
    """One period, stock S: the mean gradient is h P(d <= S) - p P(d > S), on the very demands that came."""
    store = Store(0, direct=True)
    level = torch.tensor(6.5, dtype=torch.float64, requires_grad=True)
    demand = Demand.poisson(5.0).draw(
        torch.rand(4000, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    )
    post, _ = store.decide(torch.zeros(4000, 1).double(), level.expand(4000, 1))
    _, cost = store.happen(post, demand)
    (slope,) = torch.autograd.grad(cost.mean(), level)
    covered = float((demand <= 6.5).double().mean())
    assert float(slope) == pytest.approx(covered - 9 * (1 - covered), abs=1e-9)


def test_demand() -> None:
    poisson = Demand.poisson(5.0)
    drawn = poisson.draw(torch.rand(200_000, generator=torch.Generator().manual_seed(1)))
    assert float(drawn.mean()) == pytest.approx(5.0, abs=0.03)
    assert float(drawn.var()) == pytest.approx(5.0, rel=0.02)
    assert Demand.poisson(5.0).total(3).quantile(0.9) == Demand.poisson(15.0).quantile(0.9) == 20
    assert set(Demand.uniform(0, 3).draw(torch.linspace(0, 0.9999, 100)).tolist()) == {0.0, 1.0, 2.0, 3.0}
    assert Demand.uniform(0, 3).draw(torch.tensor([0.0, 0.2499, 0.25, 0.5, 0.75])).tolist() == [0, 0, 1, 2, 3]
    with pytest.raises(UserError, match="mean=-1"):
        Demand.poisson(-1)


def test_scenario_numbers_are_uniform_and_depend_on_id_seed_and_place_alone() -> None:
    numbers = uniform_numbers(7, torch.arange(2000), 64)
    torch.testing.assert_close(uniform_numbers(7, torch.tensor([5, 1999]), 8), numbers[[5, 1999], :8])
    assert not torch.equal(uniform_numbers(8, torch.arange(3), 64), numbers[:3])
    assert float(numbers.mean()) == pytest.approx(0.5, abs=0.004)
    assert float(numbers.var()) == pytest.approx(1 / 12, rel=0.01)
    counts = torch.histc(numbers.float(), 64, 0, 1)
    assert float(((counts - 2000) ** 2 / 2000).sum()) < 63 + 4 * (2 * 63) ** 0.5
    flat = numbers.flatten() - 0.5
    for lag in (1, 63, 64, 65):
        assert abs(float((flat[lag:] * flat[:-lag]).mean()) * 12) < 0.012


def test_machines_by_hand() -> None:
    system = LotSizing()
    state = torch.tensor([[3.0, 9.0, 0.0], [3.0, 9.0, 2.0], [0.0, 1.0, 1.0]])
    post, cost = system.decide(state, torch.tensor([1, 2, 0]))
    assert post.tolist() == [[6, 9, 1], [3, 10, 2], [0, 1, 0]]
    assert cost.tolist() == [0.5, 0.0, 0.0]
    after, paid = system.happen(post, torch.tensor([[2.0, 3.0], [3.0, 3.0], [1.0, 3.0]]))
    assert after.tolist() == [[4, 6, 1], [0, 7, 2], [0, 0, 0]]
    torch.testing.assert_close(paid, torch.tensor([1.0, 0.7, 3.0]))


def test_two_decisions_with_one_post_decision_state_look_the_same() -> None:
    system = LotSizing(setup_loss=0)
    post, _ = system.decide(torch.tensor([[8.0, 0.0, 1.0], [7.0, 0.0, 0.0]]), torch.tensor([1, 1]))
    assert post[0].tolist() == post[1].tolist()
    assert torch.equal(system.observe(post)[0], system.observe(post)[1])


def test_several_machines() -> None:
    system = LotSizing(machines=2)
    post, cost = system.decide(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([[1, 2]]))
    assert post.tolist() == [[4, 3, 1, 2]]
    assert cost.tolist() == [0.5]
    assert vantage.task("lot-sizing:machines=2").make_policy().actions.kind == "multidiscrete"
