"""Inventory systems as batched simulators: a period is a known transition by the decision, then a random one by the demand.

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
"""Largest order in an evaluation, in mean demands."""


class System(Protocol):
    """Interface of a system to the engine and the solvers."""

    @property
    def demand(self) -> Draws:
        """Demand of every product in a period."""
        ...

    @property
    def products(self) -> int:
        """Number of demands per period, I."""
        ...

    @property
    def width(self) -> int:
        """Width of a state, S."""
        ...

    @property
    def observations(self) -> Observations:
        """Space of the observations of states, post-decision states included."""
        ...

    @property
    def actions(self) -> Actions:
        """Space of the decisions."""
        ...

    @property
    def cost_unit(self) -> float:
        """Unit of rewards: reward = -cost / cost_unit."""
        ...

    def start(self, uniform: Tensor) -> Tensor:
        """Map uniform numbers [N, S] to initial states [N, S]."""
        ...

    def observe(self, state: Tensor) -> Tensor:
        """Return the observations [N, W] of states [N, S]."""
        ...

    def decide(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Apply decisions [N, ...]; return the post-decision states [N, S] and the decisions' costs [N]."""
        ...

    def happen(self, state: Tensor, demand: Tensor) -> tuple[Tensor, Tensor]:
        """Apply demands [N, I] to post-decision states [N, S]; return the next states [N, S] and the costs [N]."""
        ...


@component(label="inventory")
class Store:
    """One store and one product: order, meet the demand, pay holding or shortage costs, receive deliveries.

    State [N, L + 1]: stock on hand, then deliveries due in 1, 2, ... L periods; the last entry is 0 before a decision. An order
    of period t is on hand before the demand of period t + L, so that its cost depends on L + 1 demands.

        order q:      state_L += q                                    (L = 0: it is on hand at once)
        demand d:     left = state_0 - d;   cost = h max(left, 0) + p max(-left, 0);   lost sales: left = max(left, 0)
        delivery:     state_0 = left + state_1,  state_k = state_{k+1},  state_L = 0

    Attributes:
        lead_time: L, periods, at least 0.
        holding, penalty: h and p, cost per unit and period.
        lost: unmet demand is lost; otherwise it is backlogged, as negative stock.
        demand: demand of a period.
        direct: the decision is the order itself, clamped at 0; otherwise the order is softplus(decision + 1), positive and smooth.
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
        """Stock and pipeline entries, L + 1."""
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
        """Mean cost of a period without any stock."""
        return max(self.penalty * self.demand.mean, 1e-9)

    def start(self, uniform: Tensor) -> Tensor:
        """Return stock and pipeline entries that are uniform between 0 and twice the mean demand."""
        state = uniform * (2 * self.demand.mean)
        if self.lead_time:
            state[:, -1] = 0.0
        return state

    def observe(self, state: Tensor) -> Tensor:
        """Return the state itself."""
        return state

    def order(self, action: Tensor) -> Tensor:
        """Return the orders [N], units, of decisions [N, 1]."""
        decision = action.squeeze(-1)
        return decision.clamp(min=0) if self.direct else F.softplus(decision + 1.0)

    def whole(self, state: Tensor, action: Tensor) -> Tensor:
        """Return the orders [N, 1] of decisions, rounded to whole units, at most `MOST` mean demands.

        A policy that orders more the more stock it has multiplies its stock every period. The limit keeps the very large cost of
        such a policy finite.
        """
        return self.order(action).round().clamp(max=round(MOST * self.demand.mean)).unsqueeze(-1)

    def decide(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Place the order, at no cost."""
        placed = torch.cat([state[:, :-1], (state[:, -1] + self.order(action)).unsqueeze(-1)], -1)
        return placed, torch.zeros_like(state[:, 0])

    def happen(self, state: Tensor, demand: Tensor) -> tuple[Tensor, Tensor]:
        """Meet the demand, add up the costs, receive deliveries."""
        left = state[:, 0] - demand[:, 0]
        kept = left.clamp(min=0)
        # Where demand equals stock both terms have their slope, h - p together, as in the code of arXiv 2306.11246.
        cost = self.holding * kept + self.penalty * (-left).clamp(min=0)
        stock = kept if self.lost else left
        if not self.lead_time:
            return stock.unsqueeze(-1), cost
        arrived = (stock + state[:, 1]).unsqueeze(-1)
        return torch.cat([arrived, state[:, 2:], torch.zeros_like(arrived)], -1), cost


@component(label="lot sizing")
class LotSizing:
    """Machines that each produce one of several items per period, with setup costs; unmet demand is lost.

    State [N, I + M]: stock of each item, then the item that each machine is set up for (0 for none). A decision chooses for each
    machine 0 (idle, which clears its setup) or an item 1 .. I. A machine that is not set up for its item incurs `setup_cost` and
    makes `setup_loss` units less. Stock above `capacity` is lost. Then the demand is met: each remaining unit costs `holding`,
    each unit of unmet demand `penalty`.

    Attributes:
        items, machines: I and M, at least 1.
        capacity: largest stock of each item, units.
        production: units that a machine makes per period.
        holding, penalty, setup_cost: cost per remaining unit, per unit of unmet demand, per setup.
        setup_loss: units not produced because of a setup, at most `production`.
        demand: demand of an item in a period.
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
        """Number of items, I."""
        return self.items

    @property
    def width(self) -> int:
        """Stocks and setups, I + M."""
        return self.items + self.machines

    @property
    def observations(self) -> Observations:
        """Stocks over the capacity, and each machine's setup as one-hot."""
        return Observations("vector", (self.items + self.machines * (self.items + 1),))

    @property
    def actions(self) -> Actions:
        """One choice per machine, 0 .. I."""
        sizes = (self.items + 1,) * self.machines
        if self.machines == 1:
            return Actions("discrete", (), sizes, (0,))
        return Actions("multidiscrete", (self.machines,), sizes, (0,) * self.machines)

    @property
    def cost_unit(self) -> float:
        """Mean cost of a period without any stock."""
        return max(self.penalty * self.demand.mean * self.items, 1e-9)

    def start(self, uniform: Tensor) -> Tensor:
        """Return stocks that are uniform on 0 .. capacity, with no machine set up."""
        stock = (uniform[:, : self.items] * (self.capacity + 1)).floor()
        return torch.cat([stock, torch.zeros_like(uniform[:, self.items :])], -1)

    def observe(self, state: Tensor) -> Tensor:
        """Return stocks over the capacity and setups as one-hot."""
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
        """Meet the demand and add up holding and shortage costs."""
        left = state[:, : self.items] - demand
        kept = left.clamp(min=0)
        cost = (self.holding * kept + self.penalty * (kept - left)).sum(-1)
        return torch.cat([kept, state[:, self.items :]], -1), cost
