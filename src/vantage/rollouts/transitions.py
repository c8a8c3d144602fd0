"""Replay of transitions for off-policy control: a buffer of the streams' decisions, and uniform samples of it.

Stored transitions are on the CPU; a sample is copied to the device of the fresh ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Annotated, Any

import torch
from torch import Tensor

from vantage.core import at_least, component, memory
from vantage.core.context import Context
from vantage.core.costs import Cost, cost
from vantage.core.trajectories import Trajectories
from vantage.rollouts.plans import Steps
from vantage.rollouts.replay import RowTable

KEPT = ("observation", "action", "reward", "next_observation", "terminated", "truncated", "logp_old")
"""Columns of a transition, [1, ...] each."""


class TransitionBuffer:
    """Ring buffer of the newest transitions, as rows of one decision."""

    def __init__(self) -> None:
        self.table = RowTable()
        self.pushed = 0
        """Total number of transitions pushed."""

    def push(self, batch: Trajectories, capacity: int) -> None:
        """Store the decisions in the mask, in their order; beyond `capacity` the oldest are overwritten."""
        held = Trajectories({name: batch[name] for name in (*KEPT, "mask")}, rows=len(batch)).flatten()
        held = held.select(held.mask.any(-1))
        count = len(held)
        slots = (self.pushed + torch.arange(count)) % capacity
        self.table.put(slots[-capacity:], held[max(count - capacity, 0) :])
        self.pushed += count

    def draw(self, rows: int, capacity: int, generator: torch.Generator) -> Trajectories:
        """Return `rows` transitions, sampled uniformly with replacement."""
        return self.table.get(torch.randint(min(self.pushed, capacity), (rows,), generator=generator))

    def state_dict(self) -> dict[str, Any]:
        """Return the buffer."""
        return {"table": self.table.state_dict(), "pushed": self.pushed}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore from `state_dict()`."""
        self.table.load_state_dict(state["table"])
        self.pushed = int(state["pushed"])


@component
class ReplayedTransitions:
    """Plan that stores another plan's transitions in a buffer and returns a uniform sample of the buffer.

    A row is one decision: `observation`, `action`, `reward`, `next_observation`, `terminated`, `truncated` and `logp_old`
    [rows, 1, ...], of the time of the decision; `group` numbers the rows. Observations should not be normalised by running
    moments, nor rewards scaled: stored ones would differ in their scale.

    Attributes:
        plan: samples fresh decisions, such as `Steps`.
        rows: transitions per sample.
        capacity: size of the buffer; beyond it the oldest transitions are overwritten.
        warmup: number of transitions before the first sample, which the first step gathers.
    """

    plan: Any = field(default_factory=Steps)
    rows: Annotated[int, at_least(1)] = 256
    capacity: Annotated[int, at_least(1)] = 1_000_000
    warmup: Annotated[int, at_least(0)] = 1000
    columns = frozenset({"next_observation"})
    _buffer: TransitionBuffer = memory(TransitionBuffer)

    def cost(self, episode: int | None = None) -> Cost:
        """Return the cost of a step after the first: the plan's environment steps, and rows of one decision."""
        fresh = cost(self.plan, episode)
        return Cost(self.rows, fresh.samples, self.rows, fresh.environment_steps)

    def __call__(self, context: Context) -> Trajectories:
        """Run the plan, store its transitions and return a sample."""
        device = self._gather(context)
        while self._buffer.pushed < self.warmup and (context.budget is None or context.budget.left):
            self._gather(context)
        context.record("replay/kept", min(self._buffer.pushed, self.capacity))
        drawn = self._buffer.draw(self.rows, self.capacity, context.generator).to(device)
        ones = torch.ones(self.rows, dtype=torch.int64, device=device)
        return drawn.replace(length=ones, group=torch.arange(self.rows, device=device))

    def _gather(self, context: Context) -> torch.device:
        batch: Trajectories = self.plan(context)
        self._buffer.push(batch, self.capacity)
        mask: Tensor = batch.mask
        return mask.device
