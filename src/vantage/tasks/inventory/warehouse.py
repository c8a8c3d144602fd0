"""One warehouse and several stores: the warehouse's stock limits the deliveries to the stores.

Alvo, Russo, Kanoria and Lee, "Deep Reinforcement Learning for Inventory Networks" (arXiv 2306.11246): stores order from one
warehouse, which orders from a supplier without limit. An allocation rule makes any decision feasible, so that the cost is
differentiable almost everywhere in the decisions.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from vantage.core import above, at_least, checked_by, component, not_empty, one_of
from vantage.core.errors import UserError
from vantage.policies.spaces import Actions, Observations
from vantage.tasks.inventory.demand import Demand, Demands
from vantage.tasks.inventory.optimum import optimum
from vantage.tasks.inventory.systems import MOST, Store

ALLOCATIONS = ("proportional", "softmax")
TINY = 1e-10
"""Added to the sum of orders in a denominator."""
ROUNDING = 1e-3
"""Tolerance, in units, below a whole number within which an allocation is rounded up to it."""

VARIED = 0
"""Seed of the attributes of varied stores."""


def proportional(orders: Tensor, stock: Tensor) -> Tensor:
    """Return the deliveries to the stores [N, K]: their orders, or the same share of each where stock is short.

        sent_k = o_k min(1, s / (sum o + 1e-10))

    So sent_k <= o_k, and the sum is at most s. Gradient flows to orders and stock.

    Args:
        orders: o, units, at least 0, [N, K].
        stock: s, stock on hand in the warehouse, at least 0, [N].
    """
    share = (stock / (orders.sum(-1) + TINY)).clamp(max=1.0)
    return orders * share.unsqueeze(-1)


def softmax_shares(scores: Tensor, stock: Tensor) -> Tensor:
    """Return the deliveries to the stores [N, K]: shares of the stock by a softmax over their scores and a further score of 1,
    for the stock that the warehouse keeps, so that they sum to less than the stock. Gradient flows to scores and stock.

    Args:
        scores: [N, K].
        stock: stock on hand in the warehouse, at least 0, [N].
    """
    shares = torch.cat([scores, torch.ones_like(scores[:, :1])], -1).softmax(-1)
    return shares[:, :-1] * stock.unsqueeze(-1)


def _alike(stores: tuple[Store, ...]) -> None:
    if len({store.lost for store in stores}) > 1:
        raise ValueError("unmet demand must be lost in all stores, or backlogged in all")


@component(label="warehouse")
class Warehouse:
    """System of K stores with one product, delivered by one warehouse.

    State [N, K (L + 1) + M + 1]: each store's stock and pipeline as in `Store`, with L the longest of the stores' lead times
    (entries beyond a store's own lead time are 0), then the warehouse's stock and its deliveries due in 1 .. M periods.

        decisions a [N, K + 1]:  sent = allocation(a_1 .. a_K, s),   s the warehouse's stock;   bought = limit * sigmoid(a_{K+1})
        sent_k is on hand at store k before the demand of L_k periods later, bought at the warehouse M periods later
        cost:  sum over stores of h_k max(left, 0) + p_k max(-left, 0)   +   h_w (s - sum of sent)   +   c bought

    A proportional allocation takes softplus(a_k + 1) as an order. A delivery to the warehouse can be sent to stores in the period
    after its arrival, at the earliest.

    Attributes:
        stores: stores with their lead times, costs and demands; unmet demand is lost in all, or backlogged in all.
        lead_time: M, the warehouse's lead time, at least 1.
        holding: h_w, cost per unit and period in the warehouse.
        purchase: c, cost per unit that the warehouse buys.
        allocation: "proportional" or "softmax".
        most: limit of a purchase, in mean demands of all stores together.
        correlation: correlation of the stores' demands, see `Demands`.
        direct: decisions are units ordered and bought, clamped at 0 and allocated in proportion.

    Raises:
        UserError: an attribute is out of range, or unmet demand is lost in some stores and backlogged in others.
    """

    stores: Annotated[tuple[Store, ...], not_empty, checked_by(_alike)]
    lead_time: Annotated[int, at_least(1)] = 3
    holding: Annotated[float, at_least(0)] = 0.3
    purchase: Annotated[float, at_least(0)] = 0.0
    allocation: Annotated[str, one_of(ALLOCATIONS)] = "proportional"
    most: Annotated[float, above(0)] = 4.0
    correlation: float = 0.0
    direct: bool = False

    @cached_property
    def demand(self) -> Demands:
        """Demand of every store in a period."""
        return Demands(tuple(store.demand for store in self.stores), self.correlation)

    @property
    def products(self) -> int:
        """Number of stores, K."""
        return len(self.stores)

    @property
    def places(self) -> int:
        """Entries of a store's stock and pipeline, L + 1."""
        return max(store.lead_time for store in self.stores) + 1

    @property
    def width(self) -> int:
        """Stocks and pipelines, K (L + 1) + M + 1."""
        return self.products * self.places + self.lead_time + 1

    @property
    def observations(self) -> Observations:
        """Stocks and pipelines, in units: the stores' one after the other, then the warehouse's."""
        return Observations("vector", (self.width,))

    @property
    def actions(self) -> Actions:
        """One real number per store, and one for the warehouse."""
        count = self.products + 1
        return Actions("continuous", (count,), low=(None,) * count, high=(None,) * count)

    @property
    def total(self) -> float:
        """Mean demand of all stores in a period, units."""
        return self.demand.mean * self.products

    @property
    def limit(self) -> float:
        """Upper limit of a purchase, units."""
        return self.most * self.total

    @property
    def cost_unit(self) -> float:
        """Mean cost of a period without any stock."""
        return max(sum(store.penalty * store.demand.mean for store in self.stores), 1e-9)

    @property
    def features(self) -> list[list[float]]:
        """Features of the stores [K, 4]: mean and standard deviation of the demand, penalty, lead time."""
        rows = []
        for store in self.stores:
            units = torch.arange(len(store.demand.pmf), dtype=torch.float64)
            variance = float((store.demand.pmf * (units - store.demand.mean).square()).sum())
            rows.append([store.demand.mean, variance**0.5, float(store.penalty), float(store.lead_time)])
        return rows

    def split(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """Return the stores' part of states [N, S] as [N, K, L + 1], and the warehouse's [N, M + 1]."""
        cut = self.products * self.places
        return state[:, :cut].unflatten(-1, (self.products, self.places)), state[:, cut:]

    def start(self, uniform: Tensor) -> Tensor:
        """Return stocks and pipeline entries that are uniform between 0 and twice the mean demand served; the last is 0."""
        stores, warehouse = self.split(uniform)
        scale = torch.zeros(self.products, self.places, dtype=uniform.dtype, device=uniform.device)
        for k, store in enumerate(self.stores):
            scale[k, : max(store.lead_time, 1)] = 2 * store.demand.mean
        held = warehouse * (2 * self.total)
        held[:, -1] = 0.0
        return torch.cat([(stores * scale).flatten(1), held], -1)

    def observe(self, state: Tensor) -> Tensor:
        """Return the state itself."""
        return state

    def orders(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Return the deliveries to stores [N, K] and the purchase [N] of decisions [N, K + 1] in states [N, S], in units.

        Deliveries are at least 0 and sum to at most the warehouse's stock on hand. Gradient flows to state and action.
        """
        wanted, last = action[:, :-1], action[:, -1]
        stock = self.split(state)[1][:, 0]
        if self.direct:
            return proportional(wanted.clamp(min=0), stock), last.clamp(min=0)
        if self.allocation == "softmax":
            sent = softmax_shares(wanted, stock)
        else:
            sent = proportional(F.softplus(wanted + 1.0), stock)
        return sent, self.limit * last.sigmoid()

    def whole(self, state: Tensor, action: Tensor) -> Tensor:
        """Return feasible decisions in whole units [N, K + 1], as the `direct` system takes them.

        Each allocation is rounded; where they then exceed the warehouse's stock they are reduced in proportion and rounded
        down. As in `Store.whole`, purchases are at most `MOST` mean demands.
        """
        sent, bought = self.orders(state, action)
        stock = self.split(state)[1][:, 0]
        units = (proportional(sent.round(), stock) + ROUNDING).floor()
        return torch.cat([units, bought.round().clamp(max=round(MOST * self.total)).unsqueeze(-1)], -1)

    def decide(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Deliver and buy; add up the costs of the remaining warehouse stock and of the purchase."""
        sent, bought = self.orders(state, action)
        stores, warehouse = self.split(state)
        lead = torch.tensor([store.lead_time for store in self.stores], device=state.device)
        placed = stores + F.one_hot(lead, self.places).to(state.dtype) * sent.unsqueeze(-1)
        # Rounding may make the deliveries sum to more than the stock.
        kept = (warehouse[:, 0] - sent.sum(-1)).clamp(min=0)
        held = torch.cat([kept.unsqueeze(-1), warehouse[:, 1:-1], (warehouse[:, -1] + bought).unsqueeze(-1)], -1)
        cost = self.holding * kept + self.purchase * bought
        return torch.cat([placed.flatten(1), held], -1), cost

    def happen(self, state: Tensor, demand: Tensor) -> tuple[Tensor, Tensor]:
        """Meet each store's demand, add up the costs, receive deliveries."""
        stores, warehouse = self.split(state)
        holding = torch.tensor([store.holding for store in self.stores], dtype=state.dtype, device=state.device)
        penalty = torch.tensor([store.penalty for store in self.stores], dtype=state.dtype, device=state.device)
        left = stores[..., 0] - demand
        kept = left.clamp(min=0)
        cost = (holding * kept + penalty * (-left).clamp(min=0)).sum(-1)
        stock = kept if self.stores[0].lost else left
        received = torch.cat([_shifted(stores, stock).flatten(1), _shifted(warehouse, warehouse[:, 0])], -1)
        return received, cost


def _shifted(pipeline: Tensor, stock: Tensor) -> Tensor:
    """Advance a pipeline [..., L + 1] by one period, with `stock` [...] left on hand."""
    moved = F.pad(pipeline[..., 1:], (0, 1))
    return torch.cat([(stock + moved[..., 0]).unsqueeze(-1), moved[..., 1:]], -1)


def several(store: Store, count: int, *, varied: bool = False) -> tuple[Store, ...]:
    """Return `count` copies of a store; `varied` ones differ as in the paper's experiments, by a fixed seed.

    Mean demand is uniform on 0.5 to 1.5 times the store's (Poisson), holding and penalty on 0.7 to 1.3 times the store's, and
    every lead time is that of the store or one period longer.

    Raises:
        UserError: `count` is less than 1.
    """
    if not isinstance(count, int) or count < 1:
        raise UserError(f"inventory: stores={count} is out of range: at least 1")
    if not varied:
        return (store,) * count
    drawn = torch.rand(count, 4, generator=torch.Generator().manual_seed(VARIED), dtype=torch.float64).tolist()
    return tuple(
        replace(
            store,
            demand=Demand.poisson(round(store.demand.mean * (0.5 + mean), 3)),
            holding=round(store.holding * (0.7 + 0.6 * holding), 3),
            penalty=round(store.penalty * (0.7 + 0.6 * penalty), 3),
            lead_time=store.lead_time + int(2 * longer),
        )
        for mean, holding, penalty, longer in drawn
    )


def stores_alone(system: Warehouse) -> float | None:
    """Return a lower bound on the stores' expected cost per period: that with unlimited warehouse stock at no cost.

    None where the optimal policy of a store is too large to be computed.
    """
    costs = []
    for store in system.stores:
        best = optimum(replace(store, direct=True), 0)
        if best is None:
            return None
        costs.append(best.cost)
    return sum(costs)
