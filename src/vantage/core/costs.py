"""Cost of a step of a rollout plan, and the number of steps in a budget of environment steps."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from vantage.core.errors import UserError

ENVIRONMENT_STEPS = "environment steps"


@dataclass(frozen=True)
class Cost:
    """Cost of one step of a rollout plan; None where it is known only after the step.

    Attributes:
        rows: rows that enter the loss.
        samples: rows that are sampled or read, including those that do not enter the loss.
        tokens: decisions in these rows.
        environment_steps: decisions that an environment answers.
    """

    rows: int | None = None
    samples: int | None = None
    tokens: int | None = None
    environment_steps: int | None = None

    def of(self, unit: str) -> int | None:
        """Return the cost in a unit: 'rows', 'samples', 'tokens' or 'environment steps'."""
        found: int | None = getattr(self, unit.replace(" ", "_"))
        return found


def episodes(samples: int, episode: int | None, rows: int | None = None) -> Cost:
    """Return the cost of `samples` whole episodes of `episode` decisions (None: they differ), of which `rows` enter the loss."""
    decisions = samples * episode if episode is not None else None
    return Cost(samples if rows is None else rows, samples, decisions, decisions)


def cost(plan: Any, episode: int | None = None) -> Cost:
    """Return what a step of a rollout plan costs, by its method `cost(episode)`; unknown (None) for a plan without one.

    Args:
        plan: a method's rollout.
        episode: decisions of a whole episode where all have the same number, else None.
    """
    ask = getattr(plan, "cost", None)
    return Cost() if ask is None else ask(episode)  # type: ignore[no-any-return]


class Budget:
    """Environment steps that a run may take, and those taken, as its engine counts them (`taken`).

    Args:
        size: environment steps.
        engine: takes them.
        each: what a step of the loop takes, None where they differ.

    Raises:
        UserError: the engine does not count.
    """

    def __init__(self, size: int, engine: Any, each: int | None) -> None:
        if not hasattr(engine, "taken"):
            raise UserError(
                f"{type(engine).__name__} does not count environment steps: it needs an attribute `taken`, or the task"
                ' another unit than "environment steps"'
            )
        self.size, self.engine, self.each = size, engine, each
        self.before = 0
        """Environment steps taken before the engine was made, by a run that is resumed."""

    @property
    def taken(self) -> int:
        """Environment steps that the run has taken."""
        return self.before + int(self.engine.taken)

    @property
    def left(self) -> int:
        """Remaining environment steps."""
        return max(self.size - self.taken, 0)

    def steps(self, done: int) -> int:
        """Return the total number of steps of the loop, of which `done` are done; exact where all steps cost the same.

        Raises:
            UserError: the steps that are done have taken nothing, so that the run would never end.
        """
        if done and not self.taken:
            raise UserError(
                f"{done} steps have taken no environment step, and the run's length is {self.size:,} of these: its rollout reads"
                " stored rows, which go with a task of the field offline"
            )
        each = self.each or (self.taken / done if done else self.size / 100)
        return done + math.ceil(self.left / each)
