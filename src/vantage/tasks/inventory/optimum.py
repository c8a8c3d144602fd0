"""Optimal policies and their costs: the newsvendor's closed form under backlogging, dynamic programming otherwise."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vantage.tasks.inventory.systems import LotSizing, Store

LIMIT = 3_000_000
"""Largest number of transitions (states x decisions x demands) for which dynamic programming is tried."""


@dataclass(frozen=True)
class Optimum:
    """Optimal policy of a system and its cost.

    Attributes:
        cost: expected cost per period; the long-run average for a store, over `periods` from the initial distribution for a
            system with a finite horizon.
        act: optimal decision in states [N, S] with `left` periods remaining, as `system` takes it.
        system: the same system with orders as direct decisions.
    """

    cost: float
    act: Callable[[Tensor, int], Tensor]
    system: Store | LotSizing


def newsvendor(store: Store, level: float) -> float:
    """Return the exact long-run expected cost per period of the base-stock policy with this level, under backlogging.

    h E[max(S - D, 0)] + p E[max(D - S, 0)],      D the demand of L + 1 periods
    """
    total = store.demand.total(store.lead_time + 1)
    left = level - torch.arange(len(total.pmf), dtype=torch.float64)
    return float((total.pmf * (store.holding * left.clamp(min=0) + store.penalty * (-left).clamp(min=0))).sum())


def base_stock_level(store: Store) -> int:
    """Return the optimal base-stock level under backlogging: the p / (p + h) quantile of the demand of L + 1 periods."""
    return store.demand.total(store.lead_time + 1).quantile(store.penalty / (store.penalty + store.holding))


def optimum(system: Store | LotSizing, periods: int) -> Optimum | None:
    """Return the optimal policy, or None where the system is too large to be solved.

    Args:
        system: a store, solved for its long-run average cost, or machines, solved over `periods` periods.
        periods: horizon, used for machines alone.
    """
    if isinstance(system, LotSizing):
        return _machines(system, periods)
    store = replace(system, direct=True)
    if not store.lost or store.lead_time == 0:
        # Without lead time nothing is in the pipeline, and the optimal level is the same for backlogging and lost sales.
        level = base_stock_level(store)
        return Optimum(
            newsvendor(store, level), lambda state, left: (level - state.sum(-1, keepdim=True)).clamp(min=0), store
        )
    return _lost_sales(store)


class Table:
    """All transitions of a system on a box of whole-number states, computed by the simulator itself.

    Args:
        system: the simulator.
        sizes: number of values of each coordinate of the state.
        decisions: all decisions [A, ...].
    """

    def __init__(self, system: Store | LotSizing, sizes: list[int], decisions: Tensor) -> None:
        axes = [torch.arange(size, dtype=torch.float64) for size in sizes]
        states = torch.cartesian_prod(*axes).reshape(-1, len(sizes))
        radix = torch.tensor([*itertools.accumulate(reversed(sizes[1:]), lambda a, b: a * b, initial=1)]).flip(0)
        self.sizes, self.radix = torch.tensor(sizes), radix
        self.decisions = decisions
        count = len(decisions)
        every = states.repeat_interleave(count, 0)
        post, cost = system.decide(every, decisions.repeat(len(states), *[1] * (decisions.dim() - 1)))
        values = torch.arange(len(system.demand.pmf), dtype=torch.float64)
        likely = system.demand.pmf > 1e-10
        demands = torch.cartesian_prod(*[values[likely]] * system.products).reshape(-1, system.products)
        chances = torch.cartesian_prod(*[system.demand.pmf[likely]] * system.products)
        self.chances = chances.reshape(len(demands), -1).prod(-1)
        self.cost = cost.reshape(len(states), count)
        following = []
        for demand, chance in zip(demands, self.chances.tolist(), strict=True):
            after, paid = system.happen(post, demand.expand(len(post), -1))
            self.cost += chance * paid.reshape(len(states), count)
            following.append(self.index(after).int())
        self.following = torch.stack(following)

    def index(self, state: Tensor) -> Tensor:
        """Return the number [N] of states [N, S]; outside the box, that of the nearest one in it."""
        held = torch.minimum(state.round().long().clamp(min=0), self.sizes - 1)
        return (held * self.radix).sum(-1)

    def back(self, value: Tensor) -> Tensor:
        """Return the cost [states, decisions] of each decision plus the expected `value` [states] of the next state."""
        ahead = torch.mv(value[self.following].T, self.chances)
        return self.cost + ahead.reshape(self.cost.shape)


@functools.lru_cache(maxsize=16)
def _solve_lost(key: tuple[float, ...], pmf: tuple[float, ...]) -> tuple[float, Table, Tensor] | None:
    from vantage.tasks.inventory.demand import Demand

    lead, holding, penalty = int(key[0]), key[1], key[2]
    store = Store(lead, holding, penalty, True, Demand(torch.tensor(pmf, dtype=torch.float64)), direct=True)
    # With lost sales the optimal inventory position never exceeds the optimal level under backlogging.
    most = base_stock_level(store)
    sizes = [most + round(store.demand.mean) + 1] + [most + 1] * (lead - 1) + [1]
    if torch.tensor(sizes).prod().item() * (most + 1) * int((store.demand.pmf > 1e-10).sum()) > LIMIT:
        return None
    table = Table(store, sizes, torch.arange(most + 1, dtype=torch.float64).unsqueeze(-1))
    value = torch.zeros(len(table.cost), dtype=torch.float64)
    for _ in range(10_000):
        best = table.back(value).amin(-1)
        change = best - value
        value = best - best[0]
        if float(change.max() - change.min()) < 1e-7:
            break
    return float(change.max() + change.min()) / 2, table, table.back(value).argmin(-1)


def _lost_sales(store: Store) -> Optimum | None:
    """Solve by relative value iteration on the average cost per period."""
    key = (float(store.lead_time), store.holding, store.penalty)
    solved = _solve_lost(key, tuple(store.demand.pmf.tolist()))
    if solved is None:
        return None
    cost, table, best = solved

    def act(state: Tensor, left: int) -> Tensor:
        return table.decisions[best[table.index(state.cpu())]].to(state)

    return Optimum(cost, act, store)


def _machines(system: LotSizing, periods: int) -> Optimum | None:
    """Solve by backward induction over the periods."""
    choices = torch.cartesian_prod(*[torch.arange(system.items + 1)] * system.machines).reshape(-1, system.machines)
    sizes = [system.capacity + 1] * system.items + [system.items + 1] * system.machines
    demands = int((system.demand.pmf > 1e-10).sum()) ** system.items
    if torch.tensor(sizes).prod().item() * len(choices) * demands > LIMIT:
        return None
    table = Table(system, sizes, choices)
    value = torch.zeros(len(table.cost), dtype=torch.float64)
    best = []
    for _ in range(periods):
        ahead = table.back(value)
        value = ahead.amin(-1)
        best.append(ahead.argmin(-1))
    stocks = torch.cartesian_prod(*[torch.arange(system.capacity + 1)] * system.items).reshape(-1, system.items)
    begin = table.index(torch.cat([stocks, torch.zeros(len(stocks), system.machines, dtype=torch.long)], -1))

    def act(state: Tensor, left: int) -> Tensor:
        return choices[best[left - 1][table.index(state.cpu())]].to(state.device)

    return Optimum(float(value[begin].mean()) / periods, act, system)
