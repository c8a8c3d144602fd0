"""Rollouts of preference pairs, alone or with samples of the policy, and comparisons of the policy with a frozen one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import torch

from vantage.core import above, at_least, component
from vantage.core.context import Context
from vantage.core.costs import Cost, episodes
from vantage.core.scoring import scored
from vantage.core.trajectories import FRESH, STORED, Trajectories, concatenate
from vantage.functions.parameters import twins
from vantage.rollouts.offline import stored_engine
from vantage.rollouts.plans import set_temperature


@component
class StoredPairs:
    """Rollout of the next `prompts` stored pairs, each once per epoch: rows 2 i and 2 i + 1 are the chosen and rejected answers.

    Attributes:
        prompts: pairs a step, at least 1.
    """

    prompts: Annotated[int, at_least(1)] = 64
    needs = frozenset({"pairs"})

    def cost(self, episode: int | None = None) -> Cost:
        """Return the cost of a step."""
        return episodes(2 * self.prompts, episode)

    def __call__(self, context: Context) -> Trajectories:
        """Return the next pairs."""
        return stored_engine(context, "StoredPairs").read(context.next_prompts(self.prompts).ids, context)


@component
class PairsAndFresh:
    """Rollout of stored pairs and fresh samples of the policy for further prompts, in one batch.

    `source` distinguishes them (`STORED`, `FRESH`), their groups are disjoint, and `weight` makes the mean over all rows the
    mean over the pairs' rows plus the mean over the fresh rows, whatever their numbers. Columns that only one side has are dropped.

    Attributes:
        pairs: stored pairs a step, at least 1.
        fresh: number of prompts that are sampled.
        samples: number of samples per prompt.
        temperature: sampling temperature, above 0.
    """

    pairs: Annotated[int, at_least(1)] = 64
    fresh: Annotated[int, at_least(1)] = 64
    samples: Annotated[int, at_least(1)] = 2
    temperature: Annotated[float, above(0)] = 1.0
    needs = frozenset({"pairs"})

    @property
    def rows(self) -> int:
        """Rows of a step."""
        return 2 * self.pairs + self.fresh * self.samples

    def cost(self, episode: int | None = None) -> Cost:
        """Return the cost of a step."""
        return episodes(self.rows, episode)

    def prepare(self, context: Context) -> None:
        """Set the temperature of the policy."""
        set_temperature(context, self.temperature)

    def __call__(self, context: Context) -> Trajectories:
        """Return the next pairs and fresh samples."""
        read = stored_engine(context, "PairsAndFresh").read(context.next_prompts(self.pairs).ids, context)
        drawn = context.engine.sample(context.next_prompts(self.fresh), self.samples, context)
        shared = set(read) & set(drawn)
        parts = []
        for source, part, start in ((STORED, read, 0), (FRESH, drawn, self.pairs)):
            group = torch.unique(part.group, return_inverse=True)[1] + start
            weight = torch.full((len(part),), self.rows / len(part), device=part.device)
            kept = part.replace(**{name: None for name in part if name not in shared})
            parts.append(kept.replace(group=group, weight=weight, source=torch.full_like(group, source), rewards=None))
        joined = concatenate(parts)
        # No verification: neither side is scored.
        return joined.replace(rewards={})


@contextmanager
def acting_as(context: Context, name: str) -> Iterator[None]:
    """Sample from a named frozen policy within the context: its weights replace the policy's."""
    pairs = twins(context.policy, context.named(name))
    own = [live.detach().clone() for live, _ in pairs]
    try:
        with torch.no_grad():
            torch._foreach_copy_([live for live, _ in pairs], [other for _, other in pairs])
        yield
    finally:
        with torch.no_grad():
            torch._foreach_copy_([live for live, _ in pairs], own)


@component
class Duels:
    """Rollout of the policy's answers to `prompts` prompts, each compared with an answer of a named frozen policy.

    `win` [N] is the probability that the policy's answer is preferred: the task's own `prefer(first, second, context)` where
    it has one, else the sigmoid of the difference of the two scores by the method's rewards; where one of these is missing,
    the row does not enter the loss. Only the policy's rows are returned; metrics of the
    opponent are recorded under `opponent/`.

    Attributes:
        prompts: prompts a step, at least 1.
        size: answers, each with one comparison, per prompt.
        temperature: sampling temperature of both policies, above 0.
        opponent: name of the frozen policy.
    """

    prompts: Annotated[int, at_least(1)] = 64
    size: Annotated[int, at_least(1)] = 2
    temperature: Annotated[float, above(0)] = 1.0
    opponent: str = "target"
    needs = frozenset({"episodes"})

    @property
    def policies(self) -> frozenset[str]:
        """Named policies to make: the opponent."""
        return frozenset({self.opponent})

    def cost(self, episode: int | None = None) -> Cost:
        """Return the cost of a step, the opponent's answers included."""
        return episodes(2 * self.prompts * self.size, episode, rows=self.prompts * self.size)

    def prepare(self, context: Context) -> None:
        """Set the temperature of the policy."""
        set_temperature(context, self.temperature)

    def __call__(self, context: Context) -> Trajectories:
        """Sample both sides and compare them."""
        prompts = context.next_prompts(self.prompts)
        own = context.engine.sample(prompts, self.size, context)
        # Metrics of the step are of the policy's own answers.
        aside = context.under("opponent")
        with acting_as(context, self.opponent):
            other = context.engine.sample(prompts, self.size, aside)
        prefer = getattr(context.task, "prefer", None)
        if prefer is not None:
            win = prefer(own, other, context)
            own = own.replace(rewards={})
        else:
            own = context.verify(own)
            win = torch.sigmoid(scored(own, context.under("")).score - scored(other, aside).score)
        known = ~torch.isnan(win)
        context.record("duels/win", win.nanmean())
        return own.replace(win=torch.where(known, win, 0.5).float(), mask=own.mask & known.unsqueeze(-1))
