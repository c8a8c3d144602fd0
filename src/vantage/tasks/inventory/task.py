"""Inventory tasks: a simulator with its policy, engine, evaluation and optimal cost."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vantage.core.context import Context
from vantage.core.errors import UserError, nearest, unknown
from vantage.core.protocols import Prompts
from vantage.core.trajectories import Trajectories
from vantage.policies.base_stock import BaseStockPolicy
from vantage.policies.control import ControlPolicy
from vantage.policies.store_network import StoreNetworkPolicy
from vantage.settings import read_settings
from vantage.tasks.inventory.demand import Demand
from vantage.tasks.inventory.engine import SimulatorEngine, scenarios, simulate
from vantage.tasks.inventory.optimum import Optimum, optimum
from vantage.tasks.inventory.systems import LotSizing, Store
from vantage.tasks.inventory.warehouse import Warehouse, several, stores_alone

POLICIES = ("network", "base-stock", "symmetry-aware")
EVALUATION = 2**31
"""Added to the seeds of evaluations, so that their scenarios differ from those of training."""


class InventoryTask:
    """Inventory system as a task. Prompts are scenarios (initial state and all demands), by number, without limit.

    Args:
        name: of the task.
        system: the simulator.
        periods: of an episode in training.
        policy: 'network' (a perceptron), 'base-stock' (one level; one store alone) or 'symmetry-aware' (one network for all the
            stores of a warehouse).
        evaluated, burn_in: periods of an evaluation, and how many of them, at its start, are not counted.
        **options: of the policy (`hidden`, `activation`, `log_std`, ...; `level`, `cap` of base stock).

    Raises:
        UserError: an option does not fit.
    """

    size = 0
    unit = "environment steps"
    default_steps = 500_000

    def __init__(
        self,
        name: str,
        system: Store | Warehouse | LotSizing,
        *,
        periods: int,
        policy: str = "network",
        evaluated: int = 0,
        burn_in: int = 0,
        **options: Any,
    ) -> None:
        if policy not in POLICIES:
            raise unknown("policy", policy, POLICIES, f"task {name}")
        if policy == "base-stock":
            if not isinstance(system, Store):
                raise UserError(f"task {name}: policy=base-stock goes with a store, not with machines or a warehouse")
            system = replace(system, direct=True)
        if policy == "symmetry-aware" and not isinstance(system, Warehouse):
            raise UserError(f"task {name}: policy=symmetry-aware goes with a warehouse: inventory:stores=3")
        self.name = name
        self.system = system
        self.periods = periods
        self.policy = policy
        self.evaluated = evaluated or periods
        self.burn_in = burn_in
        if periods < 1 or not 0 <= burn_in < self.evaluated:
            raise UserError(
                f"task {name}: periods={periods}, burn_in={burn_in}: at least 1, and less than evaluated={evaluated}"
            )
        self.options = options

    @cached_property
    def best(self) -> Optimum | None:
        """Optimal policy and its cost, where it can be computed."""
        return None if isinstance(self.system, Warehouse) else optimum(self.system, self.evaluated)

    @cached_property
    def bound(self) -> float | None:
        """Lower bound on the cost per period of a warehouse's stores (see `stores_alone`); None for other systems."""
        return stores_alone(self.system) if isinstance(self.system, Warehouse) else None

    def prompts(self, ids: Tensor) -> Prompts:
        """Return scenarios, each determined by its id."""
        return Prompts(ids, ids.tolist())

    def score(self, batch: Trajectories, context: Context) -> dict[str, Tensor]:
        """Return no rewards: they come with the decisions."""
        return {}

    @property
    def episode_length(self) -> int:
        """Periods of every episode."""
        return self.periods

    @property
    def episode_limit(self) -> int:
        """Periods of the longest episode; all have the same length."""
        return self.periods

    def make_policy(self, model: str | Path = "", seed: int = 0, **options: Any) -> Any:
        """Return a new policy, or the saved one in the folder `model`.

        Raises:
            UserError: the folder holds no policy, or one for another system.
        """
        if model:
            return self._load(Path(model))
        given = {**self.options, **options}
        try:
            if self.policy == "base-stock":
                return BaseStockPolicy(**given)
            if isinstance(self.system, Warehouse) and self.policy == "symmetry-aware":
                system = self.system
                return StoreNetworkPolicy(system.features, system.places, system.lead_time + 1, seed=seed, **given)
            return ControlPolicy(self.system.observations, self.system.actions, seed=seed, **given)
        except TypeError as error:
            raise UserError(f"task {self.name}: {error}") from None

    def _load(self, folder: Path) -> Any:
        config = folder / "config.json"
        kind = json.loads(config.read_text()).get("policy") if config.is_file() else None
        if kind == "base-stock":
            if self.policy != "base-stock":
                raise UserError(f"the policy in {folder} is a base-stock policy: give the option policy=base-stock")
            return BaseStockPolicy.load(folder)
        if kind == "symmetry-aware":
            network = StoreNetworkPolicy.load(folder)
            own = self.system
            if not isinstance(own, Warehouse) or self.policy != kind:
                raise UserError(f"the policy in {folder} is for a warehouse: give the options stores and policy={kind}")
            made = (network.features.tolist(), network.places, network.config["warehouse_places"])
            if made != (torch.tensor(own.features).tolist(), own.places, own.lead_time + 1):
                raise UserError(f"the policy in {folder} was made for another system than {self.name}")
            return network
        policy = ControlPolicy.load(folder)
        if (policy.observations, policy.actions) != (self.system.observations, self.system.actions):
            raise UserError(f"the policy in {folder} was made for another system than {self.name}")
        return policy

    def make_engine(self, policy: Any, seed: int = 0, **options: Any) -> SimulatorEngine:
        """Return an engine that runs the policy in copies of the system."""
        return SimulatorEngine(self.system, self.periods, seed, **options)

    def replay(self, policy: Any, batch: Trajectories) -> Tensor:
        """Simulate the batch's scenarios again with the most likely decisions: reward [N, T], with gradient through all steps.

        Raises:
            UserError: decisions are discrete, or an episode ends within a row.
        """
        if self.system.actions.kind != "continuous":
            raise UserError(f"task {self.name}: its decisions are discrete, so no gradient flows through its simulator")
        if batch.steps > 1 and bool(batch.truncated[:, :-1].any()):
            raise UserError("rows that hold the end of an episode cannot be replayed: roll out whole episodes (Groups)")
        ran = simulate(self.system, lambda seen, _: policy.distribution_of(seen).mode, batch.start, batch.demand)
        return -ran["cost"] / self.system.cost_unit

    @torch.no_grad()
    def evaluate(self, policy: Any, *, samples: int, seed: int) -> dict[str, float]:
        """Run `samples` scenarios with the most likely decisions, orders rounded to whole units.

        Evaluation episodes are longer than those of training, so that the stock of an unstable policy may diverge only here:
        orders are limited (see `Store.whole`), which keeps the cost finite.

        Returns:
            `cost` per period, `return` (-cost times the periods counted), and where the optimal policy is known `gap`: the cost
            less that of the optimal policy on the same demands, over the latter's exact cost. With a warehouse `over_bound`: the
            cost over the bound of `stores_alone`, less 1, where the bound is known.
        """
        device = next(policy.parameters()).device
        system, act = self.system, lambda seen, state: policy.distribution_of(seen).mode
        if isinstance(system, Store | Warehouse):
            system, whole = replace(system, direct=True), system.whole

            def act(seen: Tensor, state: Tensor) -> Tensor:
                return whole(state, policy.distribution_of(seen).mode)

        ids = torch.arange(samples, device=device)
        start, demand = scenarios(system, ids, self.evaluated, EVALUATION + seed)
        start = start.round()
        cost = simulate(system, act, start, demand)["cost"][:, self.burn_in :].double().mean()
        metrics = {"cost": float(cost), "return": -float(cost) * (self.evaluated - self.burn_in)}
        if self.best is not None:
            best, left = self.best, iter(range(self.evaluated, 0, -1))
            ideal = simulate(best.system, lambda seen, state: best.act(state, next(left)), start, demand)["cost"]
            metrics["gap"] = float(cost - ideal[:, self.burn_in :].double().mean()) / best.cost
        if self.bound is not None:
            metrics["over_bound"] = float(cost) / self.bound - 1
        return metrics


def task_from_spec(spec: str, options: Mapping[str, Any] | None = None) -> InventoryTask:
    """Make the task of `inventory`, `inventory:lead_time=2,lost=true`, `inventory:stores=3` or `lot-sizing:items=3`.

    `inventory` takes the attributes of `Store` and `mean` (of the Poisson demand); `lot-sizing` those of `LotSizing` and
    `highest` (of the uniform demand). `stores` is the number of stores that a warehouse delivers: `varied=true` makes them differ
    (see `several`), `warehouse_lead_time` and `warehouse_holding` are the warehouse's, and `purchase`, `allocation`, `most` and
    `correlation` are attributes of `Warehouse`. By default, `allocation` is the one that the paper combines with the policy:
    "proportional" with `policy=symmetry-aware`, "softmax" with `policy=network`.

    Raises:
        UserError: an option is not known or out of range.
    """
    name, _, rest = spec.partition(":")
    given = {**dict(options or {}), **read_settings(rest, f"task {spec}")}
    kind: Any = Store if name == "inventory" else LotSizing
    own = [f.name for f in fields(kind) if f.name != "demand"]
    settings = {key: given.pop(key) for key in own if key in given}
    policy = given.get("policy", "network")
    if name == "inventory":
        own.append("mean")
        settings["demand"] = Demand.poisson(given.pop("mean", 5.0))
        defaults: dict[str, Any] = {"periods": 50, "evaluated": 1100, "burn_in": 100}
        if policy == "network":
            defaults |= {"hidden": (512,) * 3 if "stores" in given else (32,) * 3, "activation": "elu"}
    else:
        own.append("highest")
        settings["demand"] = Demand.uniform(0, given.pop("highest", 3))
        defaults = {"periods": 100}
    system = kind(**settings)
    if name == "inventory":
        own.append("stores")
    if name == "inventory" and "stores" in given:
        own += _WAREHOUSE
        system = _warehouse(system, given, policy)
    for key in given:
        if key not in _OPTIONS:
            near = nearest(key, [*own, *_OPTIONS])
            raise UserError(f"task {name} has no option {key!r}{near} (options: {', '.join([*own, *_OPTIONS])})")
    return InventoryTask(name, system, **{**defaults, **given})


_OPTIONS = (
    "activation", "burn_in", "cap", "context", "evaluated", "hidden", "level", "log_std", "periods", "policy", "shared",
    "state_dependent_std", "warehouse_hidden",
)  # fmt: skip
_WAREHOUSE = (
    "varied", "warehouse_lead_time", "warehouse_holding", "purchase", "allocation", "most", "correlation",
)  # fmt: skip


def _warehouse(store: Store, given: dict[str, Any], policy: str) -> Warehouse:
    """Remove a warehouse's options from `given` and return the warehouse, with stores like this one."""
    count, varied = given.pop("stores"), given.pop("varied", False)
    taken = {key: given.pop(key) for key in _WAREHOUSE if key in given}
    settings = {key.removeprefix("warehouse_"): value for key, value in taken.items()}
    settings.setdefault("allocation", "proportional" if policy == "symmetry-aware" else "softmax")
    stores = several(store, count, varied=varied)
    return Warehouse(stores, direct=store.direct, **settings)
