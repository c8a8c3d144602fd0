"""Engine of inventory systems: N copies in one tensor, one call of the policy per period."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from vantage.core.context import Context
from vantage.core.protocols import Prompts
from vantage.core.trajectories import Trajectories
from vantage.tasks.inventory.systems import System

Act = Callable[[Tensor, Tensor], Tensor]
"""(observation [N, W], state [N, S]) -> decision [N, ...]."""


def simulate(system: System, act: Act, start: Tensor, demand: Tensor) -> dict[str, Tensor]:
    """Simulate a policy with given initial states and demands; gradient flows through the whole trajectory.

    Args:
        system: the simulator.
        act: the policy.
        start: states [N, S].
        demand: [N, T, I].

    Returns:
        `observation` [N, T, W], `action` [N, T, ...], `post_observation` [N, T, W] (after the decision, before the demand),
        `cost` and its part `placed` that the decision alone fixes, [N, T] each, and `state` [N, S] at the end.
    """
    state = start
    seen, done, after, costs, before = [], [], [], [], []
    for today in demand.unbind(1):
        observation = system.observe(state)
        action = act(observation, state)
        post, placed = system.decide(state, action)
        state, paid = system.happen(post, today)
        seen.append(observation)
        done.append(action)
        after.append(system.observe(post))
        costs.append(placed + paid)
        before.append(placed)
    return {
        "observation": torch.stack(seen, 1),
        "action": torch.stack(done, 1),
        "post_observation": torch.stack(after, 1),
        "cost": torch.stack(costs, 1),
        "placed": torch.stack(before, 1),
        "state": state,
    }


def uniform_numbers(seed: int, ids: Tensor, count: int) -> Tensor:
    """Return `count` uniform numbers in [0, 1) for each id [N], which depend on seed, id and index alone: [N, count] float64.

    They are the finaliser of SplitMix64 (Steele, Lea and Flood 2014) of a counter, so that no row needs a generator of its own.
    """
    places = torch.arange(count, dtype=torch.int64, device=ids.device)
    x = _mix(_mix(ids.long().unsqueeze(-1) + seed * 0x2545F491) + (places + 1) * -0x61C8864680B583EB)
    return ((x >> 11) & ((1 << 53) - 1)).double() * 2.0**-53


def _mix(x: Tensor) -> Tensor:
    # Shifts are arithmetic, so the copies of the sign are masked away.
    x = (x ^ ((x >> 30) & ((1 << 34) - 1))) * -0x40A7B892E31B1A47
    x = (x ^ ((x >> 27) & ((1 << 37) - 1))) * -0x6B2FB644ECCEEE15
    return x ^ ((x >> 31) & ((1 << 33) - 1))


class SimulatorEngine:
    """Engine that runs a policy in copies of a system, all in the same period.

    The policy offers `distribution_of(observation)`. Batches hold `action`, `mask`, `length`, `logp_old`, `reward`
    (-cost / `system.cost_unit`), `terminated`, `truncated` (at the end of an episode), `group`, `prompt`, `observation`, and, as
    only a simulator can, `post_observation` (the observation of the post-decision state), `post_reward` (the part of `reward` that
    the decision alone fixes), `demand` [N, T, I] and `start` [N, S], from which the same trajectory can be replayed. For a
    component that declares them in `columns` there are `next_observation`, `last_observation` and, where episodes end within a
    row, `final_observation`. The mean cost per period is recorded as `episode/cost`.

    Args:
        system: the simulator.
        periods: length of an episode.
        seed: seed of the scenarios of `sample`.
    """

    def __init__(self, system: System, periods: int, seed: int = 0) -> None:
        self.system = system
        self.periods = periods
        self.seed = seed
        self.taken = 0
        """Periods that were run."""
        self._state: Tensor | None = None
        self._clock = 0

    def sample(self, prompts: Prompts, count: int, context: Context, *, greedy: bool = False) -> Trajectories:
        """Run `count` episodes of each scenario, whose id determines start and demands: rows of a prompt share them."""
        start, demand = scenarios(self.system, prompts.ids.to(context.device), self.periods, self.seed)
        start, demand = start.repeat_interleave(count, 0), demand.repeat_interleave(count, 0)
        ran, state = self._run(start, demand, context, greedy)
        cut = torch.zeros_like(ran["mask"])
        cut[:, -1] = True
        group = torch.arange(len(prompts), device=cut.device).repeat_interleave(count)
        prompt = prompts.ids.to(cut.device).repeat_interleave(count)
        ran |= {"truncated": cut, "group": group, "prompt": prompt, "start": start}
        if context.asks_for("last_observation"):
            ran["last_observation"] = self.system.observe(state)
        return Trajectories(ran, rows=len(start))

    def advance(self, rows: int, steps: int, context: Context) -> Trajectories:
        """Take `steps` more decisions in each of `rows` streams, which are reset after every `periods` periods."""
        device = context.device
        if self._state is None or len(self._state) != rows:
            self._state, self._clock = self._begin(rows, context), 0
        self._state = self._state.to(device)  # a checkpoint is read on the CPU
        parts: list[dict[str, Tensor]] = []
        finals: list[Tensor] = []
        first = self._state
        left = steps
        while left:
            length = min(left, self.periods - self._clock)
            uniform = torch.rand(rows, length, self.system.products, generator=context.generator).to(device)
            part, state = self._run(self._state, self.system.demand.draw(uniform), context, False)
            cut = torch.zeros_like(part["mask"])
            self._clock += length
            left -= length
            if self._clock == self.periods:
                cut[:, -1] = True
                finals.append(self.system.observe(state))
                state, self._clock = self._begin(rows, context), 0
            self._state = state
            parts.append({**part, "truncated": cut})
        table = {name: torch.cat([part[name] for part in parts], 1) for name in parts[0] if name != "length"}
        index = torch.arange(rows, device=device)
        table |= {"length": torch.full((rows,), steps, device=device), "group": index, "prompt": index, "start": first}
        if context.asks_for("last_observation"):
            table["last_observation"] = self.system.observe(self._state)
            if finals:
                table["final_observation"] = torch.stack(finals, 1)
        return Trajectories(table, rows=rows)

    def _begin(self, rows: int, context: Context) -> Tensor:
        return self.system.start(torch.rand(rows, self.system.width, generator=context.generator).to(context.device))

    @torch.no_grad()
    def _run(self, start: Tensor, demand: Tensor, context: Context, greedy: bool) -> tuple[dict[str, Tensor], Tensor]:
        policy: Any = context.policy
        generator = _on_device(context)

        def act(observation: Tensor, state: Tensor) -> Tensor:
            distribution = policy.distribution_of(observation)
            return distribution.mode if greedy else distribution.sample(generator)

        ran = simulate(self.system, act, start, demand)
        state, cost, placed = ran.pop("state"), ran.pop("cost"), ran.pop("placed")
        self.taken += cost.numel()
        if context.asks_for("next_observation"):
            ran["next_observation"] = torch.cat([ran["observation"][:, 1:], self.system.observe(state).unsqueeze(1)], 1)
        context.record("episode/cost", cost.mean())
        mask = torch.ones_like(cost, dtype=torch.bool)
        # One further call of the policy gives the log-probabilities of all periods.
        logp = policy.evaluate(Trajectories(ran), frozenset({"logp"})).logp
        return {
            **ran,
            "demand": demand,
            "reward": -cost / self.system.cost_unit,
            "post_reward": -placed / self.system.cost_unit,
            "logp_old": logp,
            "mask": mask,
            "terminated": torch.zeros_like(mask),
            "length": torch.full((len(mask),), mask.shape[1], device=mask.device),
        }, state

    def state_dict(self) -> dict[str, Any]:
        """Return the streams' states and their period within the episode."""
        return {"state": self._state, "clock": self._clock} if self._state is not None else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore from `state_dict()`."""
        self._state, self._clock = state.get("state"), int(state.get("clock", 0))


def scenarios(system: System, ids: Tensor, periods: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return initial states [N, S] and demands [N, periods, I] of the scenarios with these ids [N]."""
    width = system.width
    uniform = uniform_numbers(seed, ids, width + periods * system.products)
    # Rounding to float32 may give 1, which is outside of [0, 1).
    uniform = uniform.float().clamp(max=1 - 2.0**-24)
    return system.start(uniform[:, :width]), system.demand.draw(uniform[:, width:]).unflatten(1, (periods, -1))


def _on_device(context: Context) -> torch.Generator:
    """Return the run's generator, or one on the policy's device that is seeded by it."""
    device = context.device
    if device.type == "cpu":
        return context.generator
    seed = int(torch.randint(2**62, (), generator=context.generator))
    return torch.Generator(device).manual_seed(seed)
