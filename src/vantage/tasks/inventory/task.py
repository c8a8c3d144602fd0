"""Inventory tasks: a simulator with the policy, the engine, the evaluation and the best possible cost that go with it."""

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
from vantage.tasks.inventory.demand import Demand
from vantage.tasks.inventory.engine import SimulatorEngine, scenarios, simulate
from vantage.tasks.inventory.optimum import Optimum, optimum
from vantage.tasks.inventory.systems import LotSizing, Store

POLICIES = ("network", "base-stock")
EVALUATION = 2**31
"""Added to the seeds of evaluations, so that their scenarios do not meet those of training."""


class InventoryTask:
    """A system as a task. Prompts are scenarios (initial state and all demands), by number; they never run out.

    Args:
        name: of the task.
        system: the simulator.
        periods: of an episode in training.
        policy: 'network' (a perceptron) or 'base-stock' (one level; stores alone).
        evaluated, burn_in: periods of an evaluation, and how many of them, at its start, are not counted.
        **options: of the policy (`hidden`, `activation`, `log_std`, ...; `level`, `cap` of base stock).

    Raises:
        UserError: an option does not fit.
    """

    size = 0
    default_steps = 500_000

    def __init__(
        self,
        name: str,
        system: Store | LotSizing,
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
                raise UserError(f"task {name}: policy=base-stock goes with a store, not with machines")
            system = replace(system, direct=True)
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
        """The best policy and its cost, where it can be computed."""
        return optimum(self.system, self.evaluated)

    def prompts(self, ids: Tensor) -> Prompts:
        """Return scenarios; the id decides everything."""
        return Prompts(ids, ids.tolist())

    def score(self, batch: Trajectories, context: Context) -> dict[str, Tensor]:
        """Nothing: rewards come with the decisions."""
        return {}

    def horizon(self, steps: int, method: Any) -> int:
        """Return how many steps of the road take `steps` periods."""
        plan = method.rollout
        if hasattr(plan, "rows") and hasattr(plan, "length"):
            return max(1, steps // (plan.rows * plan.length))
        if hasattr(plan, "prompts") and hasattr(plan, "size"):
            return max(1, steps // (plan.prompts * plan.size * self.periods))
        return steps

    def make_policy(self, model: str | Path = "", seed: int = 0, **options: Any) -> Any:
        """Return a new policy, or the saved one in the folder `model`.

        Raises:
            UserError: the folder holds none, or one for another system.
        """
        if model:
            return self._load(Path(model))
        given = {**self.options, **options}
        try:
            if self.policy == "base-stock":
                return BaseStockPolicy(**given)
            return ControlPolicy(self.system.observations, self.system.actions, seed=seed, **given)
        except TypeError as error:
            raise UserError(f"task {self.name}: {error}") from None

    def _load(self, folder: Path) -> Any:
        config = folder / "config.json"
        kind = json.loads(config.read_text()).get("policy") if config.is_file() else None
        if kind == "base-stock":
            if self.policy != "base-stock":
                raise UserError(f"the policy in {folder} orders up to a level: give the option policy=base-stock")
            return BaseStockPolicy.load(folder)
        policy = ControlPolicy.load(folder)
        if (policy.observations, policy.actions) != (self.system.observations, self.system.actions):
            raise UserError(f"the policy in {folder} was made for another system than {self.name}")
        return policy

    def make_engine(self, policy: Any, seed: int = 0, **options: Any) -> SimulatorEngine:
        """Return an engine that runs the policy in copies of the system."""
        return SimulatorEngine(self.system, self.periods, seed, **options)

    def replay(self, policy: Any, batch: Trajectories) -> Tensor:
        """Run the batch's scenarios again, taking the most likely decisions: reward [N, T], with gradient through all steps.

        Raises:
            UserError: decisions are discrete, or an episode ends within a row.
        """
        if self.system.actions.kind != "continuous":
            raise UserError(f"task {self.name}: its decisions are discrete, so nothing flows through its simulator")
        if batch.steps > 1 and bool(batch.truncated[:, :-1].any()):
            raise UserError("rows that hold the end of an episode cannot be replayed: roll out whole episodes (Groups)")
        ran = simulate(self.system, lambda seen, _: policy.distribution_of(seen).mode, batch.start, batch.demand)
        return -ran["cost"] / self.system.cost_unit

    @torch.no_grad()
    def evaluate(self, policy: Any, *, samples: int, seed: int) -> dict[str, float]:
        """Run `samples` scenarios with the most likely decisions, orders rounded to whole units.

        Returns:
            `cost` a period, `return` (-cost times the periods counted), and where the best policy is known `gap`: the
            cost above the best one's on the same demands, over the best one's exact cost.
        """
        device = next(policy.parameters()).device
        system, act = self.system, lambda seen, state: policy.distribution_of(seen).mode
        if isinstance(system, Store):
            system, order = replace(system, direct=True), system.order

            def act(seen: Tensor, state: Tensor) -> Tensor:
                return order(policy.distribution_of(seen).mode).round().unsqueeze(-1)

        ids = torch.arange(samples, device=device)
        start, demand = scenarios(system, ids, self.evaluated, EVALUATION + seed)
        start = start.round()
        cost = simulate(system, act, start, demand)["cost"][:, self.burn_in :].double().mean()
        judged = {"cost": float(cost), "return": -float(cost) * (self.evaluated - self.burn_in)}
        if self.best is not None:
            best, left = self.best, iter(range(self.evaluated, 0, -1))
            ideal = simulate(best.system, lambda seen, state: best.act(state, next(left)), start, demand)["cost"]
            judged["gap"] = float(cost - ideal[:, self.burn_in :].double().mean()) / best.cost
        return judged


def task_from_spec(spec: str, options: Mapping[str, Any] | None = None) -> InventoryTask:
    """Return the task of `inventory`, `inventory:lead_time=2,lost=true` or `lot-sizing:items=3`.

    `inventory` takes the attributes of `Store` and `mean` (of the Poisson demand); `lot-sizing` those of `LotSizing` and
    `highest` (of the uniform demand).

    Raises:
        UserError: an option is not known or out of range.
    """
    name, _, rest = spec.partition(":")
    given: dict[str, Any] = dict(options or {})
    for pair in filter(None, rest.split(",")):
        key, equals, value = pair.partition("=")
        if not equals:
            raise UserError(f"task {spec}: {pair!r} is no key=value")
        given[key] = _plain(value)
    kind: Any = Store if name == "inventory" else LotSizing
    own = [f.name for f in fields(kind) if f.name != "demand"]
    settings = {key: given.pop(key) for key in own if key in given}
    if name == "inventory":
        settings["demand"] = Demand.poisson(given.pop("mean", 5.0))
        defaults: dict[str, Any] = {"periods": 50, "evaluated": 1100, "burn_in": 100}
        if given.get("policy", "network") == "network":
            defaults |= {"hidden": (32, 32, 32), "activation": "elu"}
    else:
        settings["demand"] = Demand.uniform(0, given.pop("highest", 3))
        defaults = {"periods": 100}
    known = {
        "periods",
        "policy",
        "evaluated",
        "burn_in",
        "hidden",
        "activation",
        "shared",
        "state_dependent_std",
        "log_std",
    }
    known |= {"level", "cap"}
    for key in given:
        if key not in known:
            near = nearest(key, [*own, *known])
            raise UserError(f"task {name} has no option {key!r}{near} (options: {', '.join([*own, *sorted(known)])})")
    return InventoryTask(name, kind(**settings), **{**defaults, **given})


def _plain(text: str) -> Any:
    lowered = text.lower()
    if lowered in ("true", "false", "none"):
        return {"true": True, "false": False, "none": None}[lowered]
    for convert in (int, float):
        try:
            return convert(text)
        except ValueError:
            continue
    return text
