"""Inventory systems as batched simulators: a period is what the decision does, then what the demand does.

A system is a frozen dataclass of pure functions on states [N, S]:

    decide(state, action)  -> (post-decision state, cost [N])      known: orders placed, machines set up
    happen(state, demand)  -> (next state, cost [N])               random: sales, holding, shortage, deliveries

Where actions are continuous, every step is differentiable almost everywhere with respect to states and actions (max and
min have subgradient 0 or 1), and `happen` works on post-decision states alone.
"""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from vantage.core import at_least, component
from vantage.core.errors import out_of_range
from vantage.policies.spaces import Actions, Observations
from vantage.tasks.inventory.demand import Demand, Draws

MOST = 1000.0
"""Mean demands up to which an order is carried out where a policy is judged."""


class System(Protocol):
    """What the engine and the solvers ask of a system."""

    @property
    def demand(self) -> Draws:
        """Of every product in a period."""
        ...

    @property
    def products(self) -> int:
        """Demands a period, I."""
        ...

    @property
    def width(self) -> int:
        """Numbers in a state, S."""
        ...

    @property
    def observations(self) -> Observations:
        """What a policy sees of a state, post-decision states included."""
        ...

    @property
    def actions(self) -> Actions:
        """What it decides."""
        ...

    @property
    def cost_unit(self) -> float:
        """What rewards are measured in: reward = -cost / cost_unit."""
        ...

    def start(self, uniform: Tensor) -> Tensor:
        """Turn uniform numbers [N, S] into initial states [N, S]."""
        ...

    def observe(self, state: Tensor) -> Tensor:
        """Return what a policy sees, [N, W]."""
        ...

    def decide(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Carry out decisions [N, ...]; return the post-decision state [N, S] and its cost [N]."""
        ...

    def happen(self, state: Tensor, demand: Tensor) -> tuple[Tensor, Tensor]:
        """Let demands [N, I] arrive at post-decision states; return the next state [N, S] and the cost [N]."""
        ...


@component(label="inventory")
class Store:
    """One store and one product: order, meet the demand, pay for what is left or missing, receive what arrives.

    State [N, L + 1]: on hand, then what arrives in 1, 2, ... L periods; the last place is empty before a decision. An order
    of period t is on hand before the demand of period t + L, so that its cost depends on L + 1 demands.

        order q:      state_L += q                                    (L = 0: it is on hand at once)
        demand d:     left = state_0 - d;   cost = h max(left, 0) + p max(-left, 0);   lost sales: left = max(left, 0)
        delivery:     state_0 = left + state_1,  state_k = state_{k+1},  state_L = 0

    Attributes:
        lead_time: L, periods, at least 0.
        holding, penalty: h and p, cost a unit and period.
        lost: unmet demand is lost; else it waits, as negative stock.
        demand: of a period.
        direct: the decision is the order itself, cut at 0; else the order is softplus(decision + 1), positive and smooth.
    """

    lead_time: Annotated[int, at_least(0)] = 2
    holding: Annotated[float, at_least(0)] = 1.0
    penalty: Annotated[float, at_least(0)] = 9.0
    lost: bool = False
    demand: Demand = field(default_factory=lambda: Demand.poisson(5.0))
    direct: bool = False

    @property
    def products(self) -> int:
        """One."""
        return 1

    @property
    def width(self) -> int:
        """Stock and pipeline."""
        return self.lead_time + 1

    @property
    def observations(self) -> Observations:
        """Stock and pipeline, in units."""
        return Observations("vector", (self.width,))

    @property
    def actions(self) -> Actions:
        """One real number."""
        return Actions("continuous", (1,), low=(None,), high=(None,))

    @property
    def cost_unit(self) -> float:
        """What a period without any stock costs on average."""
        return max(self.penalty * self.demand.mean, 1e-9)

    def start(self, uniform: Tensor) -> Tensor:
        """Every place of the pipeline between 0 and twice the mean demand."""
        state = uniform * (2 * self.demand.mean)
        if self.lead_time:
            state[:, -1] = 0.0
        return state

    def observe(self, state: Tensor) -> Tensor:
        """The state itself."""
        return state

    def order(self, action: Tensor) -> Tensor:
        """Return the orders [N] that decisions [N, 1] stand for."""
        decision = action.squeeze(-1)
        return decision.clamp(min=0) if self.direct else F.softplus(decision + 1.0)

    def whole(self, state: Tensor, action: Tensor) -> Tensor:
        """Return the orders [N, 1] that decisions stand for, in whole units, at most `MOST` mean demands.

        A policy that orders the more, the more it has, grows its stock by a factor every period. The limit leaves the cost of a
        long run with it what it is, enormous, and keeps it a number.
        """
        return self.order(action).round().clamp(max=round(MOST * self.demand.mean)).unsqueeze(-1)

    def decide(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Place the order; it costs nothing by itself."""
        placed = torch.cat([state[:, :-1], (state[:, -1] + self.order(action)).unsqueeze(-1)], -1)
        return placed, torch.zeros_like(state[:, 0])

    def happen(self, state: Tensor, demand: Tensor) -> tuple[Tensor, Tensor]:
        """Meet the demand, pay, receive."""
        left = state[:, 0] - demand[:, 0]
        kept = left.clamp(min=0)
        cost = self.holding * kept + self.penalty * (kept - left)
        stock = kept if self.lost else left
        if not self.lead_time:
            return stock.unsqueeze(-1), cost
        arrived = (stock + state[:, 1]).unsqueeze(-1)
        return torch.cat([arrived, state[:, 2:], torch.zeros_like(arrived)], -1), cost


@component(label="lot sizing")
class LotSizing:
    """Machines that make one of several items a period, and pay to switch; demand that finds no stock is lost.

    State [N, I + M]: stock of each item, then what each machine is set up for (0 nothing). A decision chooses for each
    machine 0 (idle, which clears its setup) or an item 1 .. I. A machine that is not set up for its item pays `setup_cost` and
    makes `setup_loss` units less. What exceeds `capacity` is lost. Then demand comes: each unit left costs `holding`, each
    unit missed `penalty`.

    Attributes:
        items, machines: I and M, at least 1.
        capacity: of the stock of each item, units.
        production: units a machine makes in a period.
        holding, penalty, setup_cost: cost a unit left, a unit missed, a setup.
        setup_loss: units, at most `production`.
        demand: of an item in a period.
    """

    items: Annotated[int, at_least(1)] = 2
    machines: Annotated[int, at_least(1)] = 1
    capacity: Annotated[int, at_least(1)] = 10
    production: Annotated[int, at_least(1)] = 4
    holding: Annotated[float, at_least(0)] = 0.1
    penalty: Annotated[float, at_least(0)] = 1.0
    setup_cost: Annotated[float, at_least(0)] = 0.5
    setup_loss: Annotated[int, at_least(0)] = 1
    demand: Demand = field(default_factory=lambda: Demand.uniform(0, 3))

    def __post_init__(self) -> None:
        if self.setup_loss > self.production:
            raise out_of_range("lot sizing: setup_loss", self.setup_loss, f"at most production={self.production}")

    @property
    def products(self) -> int:
        """Items with a demand of their own."""
        return self.items

    @property
    def width(self) -> int:
        """Stocks and setups."""
        return self.items + self.machines

    @property
    def observations(self) -> Observations:
        """Stocks over the capacity, and each machine's setup as one-hot."""
        return Observations("vector", (self.items + self.machines * (self.items + 1),))

    @property
    def actions(self) -> Actions:
        """One choice a machine."""
        sizes = (self.items + 1,) * self.machines
        if self.machines == 1:
            return Actions("discrete", (), sizes, (0,))
        return Actions("multidiscrete", (self.machines,), sizes, (0,) * self.machines)

    @property
    def cost_unit(self) -> float:
        """What a period without production costs on average."""
        return max(self.penalty * self.demand.mean * self.items, 1e-9)

    def start(self, uniform: Tensor) -> Tensor:
        """Stocks uniform on 0 .. capacity, nothing set up."""
        stock = (uniform[:, : self.items] * (self.capacity + 1)).floor()
        return torch.cat([stock, torch.zeros_like(uniform[:, self.items :])], -1)

    def observe(self, state: Tensor) -> Tensor:
        """Stocks and setups."""
        setup = F.one_hot(state[:, self.items :].long(), self.items + 1).to(state.dtype)
        return torch.cat([state[:, : self.items] / self.capacity, setup.flatten(1)], -1)

    def decide(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Set up and produce."""
        chosen = action.reshape(len(state), self.machines)
        busy = chosen > 0
        switched = busy & (chosen != state[:, self.items :].long())
        made = (self.production * busy - self.setup_loss * switched).to(state.dtype)
        stock = state[:, : self.items].scatter_add(1, (chosen - 1).clamp(min=0), made).clamp(max=self.capacity)
        return torch.cat([stock, chosen.to(state.dtype)], -1), self.setup_cost * switched.sum(-1).to(state.dtype)

    def happen(self, state: Tensor, demand: Tensor) -> tuple[Tensor, Tensor]:
        """Sell, pay for what is left and what is missed."""
        left = state[:, : self.items] - demand
        kept = left.clamp(min=0)
        cost = (self.holding * kept + self.penalty * (kept - left)).sum(-1)
        return torch.cat([kept, state[:, self.items :]], -1), cost
