"""Count of a run's generated samples, tokens or environment steps, which ends the run at its budget."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vantage.core.context import Context, Engine
from vantage.core.errors import UserError
from vantage.core.protocols import Prompts
from vantage.core.trajectories import Trajectories


class BudgetSpent(Exception):
    """Raised where the next decisions would exceed the budget: the step that requested them does not count."""


class Meter:
    """Engine that counts what its inner engine generates, and refuses what exceeds the budget.

    Everything that is generated counts, whether it enters the loss or not: greedy answers, dropped groups, branches from the
    middle of a row (their new tokens; each is a further sample). A step whose generation exceeds the budget ends with
    `BudgetSpent` before it has changed the policy, so that all methods train on at most the same amount.

    Args:
        engine: inner engine.
        unit: "samples" (rows), "tokens" (decisions drawn), or "environment steps".
        size: the budget.
    """

    def __init__(self, engine: Engine, unit: str, size: float) -> None:
        self.engine = engine
        self.unit = unit
        self.size = size
        self.spent = 0.0

    def __getattr__(self, name: str) -> Any:
        held = getattr(self.engine, name)
        return _COUNTED[name](self, held) if name in _COUNTED else held

    def sample(self, prompts: Prompts, count: int, context: Context, **settings: Any) -> Trajectories:
        """Run `count` episodes from each prompt."""
        if self.unit == "samples":
            self._ask(len(prompts) * count)
        batch = self.engine.sample(prompts, count, context, **settings)
        self._take(len(batch), batch)
        return batch

    def advance(self, rows: int, steps: int, context: Context) -> Trajectories:
        """Take `steps` more decisions in each of `rows` streams."""
        if self.unit == "samples":
            self._ask(rows)
        elif self.unit == "environment steps":
            self._ask(rows * steps)
        batch = self.engine.advance(rows, steps, context)
        if self.unit == "environment steps":
            self.spent += rows * steps
        else:
            self._take(len(batch), batch)
        return batch

    def state_dict(self) -> dict[str, Any]:
        """Return the engine's state."""
        return self.engine.state_dict()

    def load_state_dict(self, state: Any) -> None:
        """Restore the engine's state."""
        self.engine.load_state_dict(state)

    def _ask(self, cost: float) -> None:
        if self.spent + cost > self.size:
            raise BudgetSpent

    def _take(self, rows: float, batch: Trajectories, before: float = 0.0) -> None:
        """Count rows, or the sampled decisions less `before`, the number of decisions that were kept."""
        self.spent += rows if self.unit == "samples" else float(batch.mask.sum()) - before
        if self.spent > self.size:
            raise BudgetSpent


def _resume(meter: Meter, inner: Callable[..., Trajectories]) -> Callable[..., Trajectories]:
    def resume(
        batch: Trajectories, rows: Any, positions: Any, count: int, context: Context, **settings: Any
    ) -> Trajectories:
        found = inner(batch, rows, positions, count, context, **settings)
        kept = float(positions.sum()) * count if settings.get("learn_prefix") else 0.0
        meter._take(len(found), found, kept)
        return found

    return resume


def _respond(meter: Meter, inner: Callable[..., Trajectories]) -> Callable[..., Trajectories]:
    def respond(batch: Trajectories, texts: Any, context: Context, **settings: Any) -> Trajectories:
        # A further turn of the same rows: tokens, but no sample.
        found = inner(batch, texts, context, **settings)
        meter._take(0, found, float(batch.mask.sum()))
        return found

    return respond


def _converse(meter: Meter, inner: Callable[..., Trajectories]) -> Callable[..., Trajectories]:
    def converse(*arguments: Any, **settings: Any) -> Trajectories:
        found = inner(*arguments, **settings)
        meter._take(len(found), found)
        return found

    return converse


def _read(meter: Meter, inner: Callable[..., Trajectories]) -> Callable[..., Trajectories]:
    def read(ids: Any, context: Context) -> Trajectories:
        # Stored rows have the cost of fresh ones, so that training on data has a budget too.
        found = inner(ids, context)
        meter._take(len(found), found)
        return found

    return read


_COUNTED: dict[str, Callable[[Meter, Any], Any]] = {
    "resume": _resume,
    "respond": _respond,
    "converse": _converse,
    "read": _read,
}


class Horizon:
    """Estimate of the number of training steps of a budget, from the costs of the steps so far."""

    def __init__(self, size: float, first: float | None) -> None:
        if first is not None and first > size:
            raise UserError(
                f"the budget of {size:g} is less than one step of this method, which takes {first:g}:"
                " give it smaller batches"
            )
        self.size = size
        self.first = first
        self.cheapest, self.dearest = float("inf"), 0.0
        self.spent = 0.0

    def at_start(self) -> int:
        """Return the estimated number of steps before the first."""
        return int(self.size // self.first) if self.first else 100

    def after(self, step: int, spent: float) -> int:
        """Return the estimated number of steps, `step` of which have spent `spent`; the result `step` ends the run."""
        cost, self.spent = spent - self.spent, spent
        self.cheapest, self.dearest = min(self.cheapest, cost), max(self.dearest, cost)
        left = self.size - spent
        if self.cheapest == self.dearest:
            return step + (int(left // cost) if cost else 1)
        # Steps have different costs: continue until one is refused.
        return step + max(1, round(left * step / spent)) if left > 0 else step
