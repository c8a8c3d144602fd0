"""Rollout plans for any engine: groups of episodes, streams of steps, refilled batches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import field
from typing import Annotated, Any

import torch

from vantage.core import above, at_least, component, memory
from vantage.core.context import Context
from vantage.core.costs import Cost, episodes
from vantage.core.errors import UserError, nearest
from vantage.core.protocols import Prompts
from vantage.core.scoring import scored
from vantage.core.trajectories import Trajectories, concatenate
from vantage.functions.groups import group_index, group_moments

UNLIMITED = 1000
"""Assumed largest number of decisions of an episode that has no limit."""


@component
class Shuffled:
    """Prompts in a new random order each epoch, each once per epoch.

    The run's seed determines the order. A task without a fixed set of prompts (`size` 0) gets fresh ids 0, 1, 2, ...
    """

    _state: dict[str, int] = memory()

    def prepare(self, context: Context) -> None:
        """Sample the seed of the orders."""
        seed = int(torch.randint(2**62, (), generator=context.generator))
        self._state.update(seed=seed, epoch=0, cursor=0)

    def __call__(self, count: int, context: Context) -> Prompts:
        """Return the next `count` prompts."""
        size, state = context.task.size, self._state
        if size == 0:
            ids = torch.arange(state["cursor"], state["cursor"] + count)
            state["cursor"] += count
            return context.task.prompts(ids)
        taken = []
        while count > 0:
            order = self._order(size)
            part = order[state["cursor"] : state["cursor"] + count]
            taken.append(part)
            count -= len(part)
            state["cursor"] += len(part)
            if state["cursor"] >= size:
                state.update(epoch=state["epoch"] + 1, cursor=0)
        return context.task.prompts(torch.cat(taken))

    def _order(self, size: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed((self._state["seed"] + self._state["epoch"]) % 2**63)
        return torch.randperm(size, generator=generator)


@component
class Groups:
    """Rollout of `size` whole episodes from each of `prompts` prompts; the episodes of a prompt are a group.

    Attributes:
        prompts: prompts a step, at least 1.
        size: episodes a prompt (G), at least 1.
        temperature: divides the logits of a policy that has them, above 0, in sampling and in the update.
    """

    prompts: Annotated[int, at_least(1)] = 16
    size: Annotated[int, at_least(1)] = 8
    temperature: Annotated[float, above(0)] = 1.0
    needs = frozenset({"episodes"})

    def prepare(self, context: Context) -> None:
        """Set the temperature of the policy."""
        set_temperature(context, self.temperature)

    def cost(self, episode: int | None = None) -> Cost:
        """Return the cost of a step."""
        return episodes(self.prompts * self.size, episode)

    def __call__(self, context: Context) -> Trajectories:
        """Sample the next prompts; the last of a budget of environment steps may be fewer, but at least one."""
        budget = context.budget
        if budget is None:
            return context.engine.sample(context.next_prompts(self.prompts), self.size, context)
        longest = self.size * (getattr(context.task, "episode_limit", None) or UNLIMITED)
        parts: list[Trajectories] = []
        wanted = self.prompts
        while wanted and (not parts or budget.left):
            # As many as fit if all their episodes have the largest length; the actual remainder is known afterwards.
            count = min(wanted, max(budget.left // longest, 1))
            parts.append(context.engine.sample(context.next_prompts(count), self.size, context))
            wanted -= count
        return joined(parts)


@component
class Steps:
    """Rollout of `length` further decisions in each of `rows` streams, which continue across ends of episodes and calls."""

    rows: Annotated[int, at_least(1)] = 4
    length: Annotated[int, at_least(1)] = 128
    needs = frozenset({"streams"})

    def cost(self, episode: int | None = None) -> Cost:
        """Return the cost of a step."""
        return Cost(self.rows, self.rows, self.rows * self.length, self.rows * self.length)

    def __call__(self, context: Context) -> Trajectories:
        """Continue the streams; the last step of a budget of environment steps is shortened to what remains."""
        left = self.length if context.budget is None else math.ceil(context.budget.left / self.rows)
        return context.engine.advance(self.rows, min(self.length, max(left, 1)), context)


@component
class Refill:
    """Repetition of a plan until `groups` groups have different outcomes; groups whose members all score the same are dropped.

    Known as dynamic sampling (DAPO, arXiv 2503.14476, eq. 11). The share kept is recorded as `rollout/informative`, metrics of all
    drawn rows are recorded under `drawn/`. If no group is informative after `rounds` plans, the batch is the last
    plan's, unfiltered.

    Attributes:
        plan: samples `prompts` groups per round.
        groups: number of informative groups.
        rounds: largest number of rounds.
        metric: value that must differ in a group: a named reward; "total", the score after the first of the method's rewards, their
            weighted sum; or "score", that after all of them.

    Raises:
        UserError: no reward has the name `metric`.
    """

    plan: Any = field(default_factory=Groups)
    groups: Annotated[int, at_least(1)] = 16
    rounds: Annotated[int, at_least(1)] = 4
    metric: str = "score"

    def __call__(self, context: Context) -> Trajectories:
        """Sample until there are enough informative groups."""
        kept: list[Trajectories] = []
        aside = context.under("drawn")
        found = drawn = 0
        batch: Trajectories | None = None
        for _ in range(self.rounds):
            batch = aside.verify(self.plan(context))
            _, std = group_moments(self._values(batch, aside), batch.group)
            informative = std > 1e-6
            drawn += int(torch.unique(batch.group).numel())
            if informative.any():
                kept.append(batch.select(informative))
                found += group_index(kept[-1].group)[1]
            if found >= self.groups or (context.budget is not None and not context.budget.left):
                break
        context.record("rollout/informative", found / max(drawn, 1))
        if not kept:
            assert batch is not None
            context.observe(batch)
            return batch
        batch = joined(kept)
        batch = batch.select(batch.group < self.groups)
        context.observe(batch)
        return batch

    def _values(self, batch: Trajectories, aside: Context) -> torch.Tensor:
        if self.metric == "total":
            return aside.method.rewards[0](batch, aside).score
        found = scored(batch, aside)
        if self.metric == "score":
            return found.score
        named = batch.get("rewards", {})
        if self.metric not in named:
            raise UserError(
                f"Refill.metric={self.metric!r} is no reward of the task{nearest(self.metric, named)} (there are: "
                f"{', '.join((*named, 'total', 'score'))})"
            )
        return named[self.metric]


def joined(parts: Sequence[Trajectories]) -> Trajectories:
    """Concatenate batches; groups of different batches remain distinct: they are renumbered 0, 1, 2, ..."""
    numbered, start = [], 0
    for part in parts:
        index, count = group_index(part.group)
        numbered.append(part.replace(group=index + start))
        start += count
    return concatenate(numbered)


def set_temperature(context: Context, temperature: float) -> None:
    """Set the policy's temperature; a policy without logits accepts only 1."""
    if hasattr(context.policy, "temperature"):
        context.policy.temperature = temperature
        for frozen in context.policies.values():
            frozen.temperature = temperature  # type: ignore[attr-defined]
    elif temperature != 1.0:
        raise UserError(f"temperature={temperature}: {type(context.policy).__name__} has no temperature; it must be 1")
