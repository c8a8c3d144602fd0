"""Minibatches of stored rows; nothing is sampled from the policy."""

from __future__ import annotations

from typing import Annotated, Any, Protocol

import torch
from torch import Tensor

from vantage.core import at_least, component
from vantage.core.context import Context, Engine
from vantage.core.costs import Cost
from vantage.core.errors import UserError
from vantage.core.trajectories import Trajectories


class StoredEngine(Engine, Protocol):
    """Interface of an engine that also holds stored rows of another origin than the policy."""

    def read(self, ids: Tensor, context: Context) -> Trajectories:
        """Return all stored rows with these ids [B] (in [0, `task.size`))."""
        ...


def stored_engine(context: Context, who: str) -> StoredEngine:
    """Return the run's engine, which must hold stored rows.

    Raises:
        UserError: the engine holds none; the message names the component.
    """
    engine: Any = context.engine
    if not hasattr(engine, "read"):
        raise UserError(
            f"{who} learns from stored data, and the task {context.task.name!r} holds none: give preference pairs with"
            " --data FILE, or take a task of the fields preference or offline (`vantage tasks`)"
        )
    return engine  # type: ignore[no-any-return]


@component
class Transitions:
    """Rollout of `rows` stored transitions, sampled uniformly with replacement; each is a row of one decision.

    Attributes:
        rows: transitions a step, at least 1.
    """

    rows: Annotated[int, at_least(1)] = 256
    needs = frozenset({"transitions"})

    def cost(self, episode: int | None = None) -> Cost:
        """Return the cost of a step: rows of one decision, and no environment."""
        return Cost(self.rows, self.rows, self.rows)

    def __call__(self, context: Context) -> Trajectories:
        """Return a sample."""
        engine = stored_engine(context, "Transitions")
        return engine.read(torch.randint(context.task.size, (self.rows,), generator=context.generator), context)
