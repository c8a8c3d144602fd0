"""Run-wide state passed to every component: policy, engine, task, progress, randomness, metrics; and what engine and task offer.

Engines and tasks are structural: nothing inherits from them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from vantage.core.costs import Budget
from vantage.core.errors import UserError
from vantage.core.method import Method
from vantage.core.protocols import Evaluation, Policy, Prompts
from vantage.core.trajectories import Trajectories
from vantage.core.walk import walk
from vantage.metrics import Metrics


class Engine(Protocol):
    """Samples rows of decisions from the policy in the task."""

    def sample(self, prompts: Prompts, count: int, context: Context, *, greedy: bool = False) -> Trajectories:
        """Run `count` whole episodes from each prompt; rows of a prompt are adjacent and share `group`.

        `greedy` takes the most likely decision at each step instead of a draw.
        """
        ...

    def advance(self, rows: int, steps: int, context: Context) -> Trajectories:
        """Take `steps` more decisions in each of `rows` streams that continue from call to call."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return what is needed to resume."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore from `state_dict()`."""
        ...


class PrefixEngine(Engine, Protocol):
    """An engine that can also resume from any prefix and return the content of a row. A plan asks for it by `prefix_engine`."""

    max_length: int
    """Largest number of decisions in a row."""

    def sample(
        self, prompts: Prompts, count: int, context: Context, *, greedy: bool = False, limit: int | None = None
    ) -> Trajectories:
        """As `Engine.sample`; a row that has not ended after `limit` decisions stops there, truncated."""
        ...

    def resume(
        self,
        batch: Trajectories,
        rows: Tensor,
        positions: Tensor,
        count: int,
        context: Context,
        *,
        limit: int | None = None,
    ) -> Trajectories:
        """Continue `count` times from row `rows[i]` of a batch, of which the first `positions[i]` decisions are kept; both [K].

        No row has ended at its position. `limit` bounds the new decisions of each.

        Returns:
            K * count whole rows: kept decisions first, with their `logp_old`; `length` counts both, `mask` holds the new ones
            alone. Rows of one start share `group`, and `parent` [K * count] is the row that they branched from.
        """
        ...

    def texts(self, batch: Trajectories) -> list[Any]:
        """Return the content of each row in the form that a prompt can hold: text where rows are texts."""
        ...


class Task(Protocol):
    """Training prompts, rewards of rows, and evaluation of a policy.

    It may offer `fields(ids)`: further data of each prompt (hints, a difficulty), one mapping per prompt;
    and `observe(batch, context)`, which records metrics of rows (their length) besides their rewards. A task whose `unit` is
    "environment steps" has runs whose length is counted in them; its engine counts them in `taken`. `episode_length` is the
    number of decisions of every episode where all have as many, `episode_limit` the largest that one can have.
    """

    name: str
    size: int
    """Number of training prompts; 0 when initial states are drawn by seed and never run out."""

    def prompts(self, ids: Tensor) -> Prompts:
        """Return the training prompts with these ids [B]."""
        ...

    def score(self, batch: Trajectories, context: Context) -> dict[str, Tensor]:
        """Return the named rewards [N] of finished rows; empty when the environment gave the rewards."""
        ...

    def evaluate(self, policy: Any, *, samples: int, seed: int) -> dict[str, float]:
        """Evaluate the policy on held-out problems or fresh episodes."""
        ...


@dataclass
class Context:
    """Policy, named frozen policies, engine, task, progress, randomness and metrics, shared by all components of a run."""

    method: Method
    policy: Policy
    engine: Engine
    task: Task
    generator: torch.Generator
    step: int = 0
    """Steps that are done."""
    total_steps: int = 1
    """Total number of steps of the run."""
    policies: dict[str, Policy] = field(default_factory=dict)
    metrics: Metrics = field(default_factory=Metrics)
    micro_batch: int | None = None
    """Rows that a policy evaluates at once without gradient; None for all."""
    budget: Budget | None = None
    """Remaining environment steps, where the run's length is counted in them."""
    aside: bool = False
    """Whether this context is for rows that do not enter the loss (see `under`)."""

    @property
    def progress(self) -> float:
        """Fraction of the run that is done, in [0, 1]."""
        return min(self.step / max(self.total_steps, 1), 1.0)

    @property
    def device(self) -> torch.device:
        """Device of the policy."""
        return next(self.policy.parameters()).device

    def record(self, name: str, value: Tensor | float, weight: float = 1.0) -> None:
        """Record a metric of this step (a weighted mean over its calls)."""
        self.metrics.record(name, value, weight)

    def record_total(self, name: str, total: Tensor | float, count: Tensor | float) -> None:
        """Record a mean as a sum and the count of the summed values; a count of 0 records nothing."""
        self.metrics.record_total(name, total, count)

    def record_mean(self, name: str, values: Tensor, mask: Tensor) -> None:
        """Record the mean of values over the decisions of the mask, both [N, T]; in a loss, so that no micro-batch changes it."""
        self.metrics.record_mean(name, values, mask)

    def derive(self, name: str, function: Callable[..., float], *of: str) -> None:
        """Record under `name` a function of the step's means of other names, such as the perplexity of a cross-entropy."""
        self.metrics.derive(name, function, *of)

    def under(self, prefix: str) -> Context:
        """Return a context for rows outside of the loss: its metrics are recorded under `prefix/`, or with "" not at all."""
        return replace(self, metrics=self.metrics.under(prefix) if prefix else Metrics(), aside=True)

    def named(self, name: str) -> Policy:
        """Return a named frozen policy.

        Raises:
            UserError: no component declares it in `policies`.
        """
        if name not in self.policies:
            raise UserError(
                f"there is no policy named {name!r}: the component that reads it must declare it in `policies`"
            )
        return self.policies[name]

    def freeze(self, name: str) -> None:
        """Store a frozen copy of the present policy under this name."""
        self.policies[name] = self.policy.frozen()

    def evaluate(
        self,
        batch: Trajectories,
        want: str = "logp",
        policy: Policy | None = None,
        read: Callable[[Evaluation, Trajectories], Tensor] | None = None,
    ) -> Tensor:
        """Evaluate a policy on a batch without gradient, `micro_batch` rows at a time, and return one output, [N, T, ...].

        Args:
            batch: rows to evaluate.
            want: the output's name ("logp", "entropy", "value", "hidden", "distribution").
            policy: the policy to evaluate; None for the one that is trained.
            read: `(evaluation, rows)`: returns what to keep of the evaluation of some rows, so that a large output is never held
                for the whole batch; None for the output itself.
        """
        chosen = self.policy if policy is None else policy
        keep = read if read is not None else lambda evaluation, rows: getattr(evaluation, want)
        size = max(self.rows_at_once or len(batch), 1)
        with torch.no_grad():
            cut = [batch[start : start + size] for start in range(0, max(len(batch), 1), size)]
            parts = [keep(chosen.evaluate(rows, frozenset({want})), rows) for rows in cut]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    @property
    def rows_at_once(self) -> int | None:
        """Rows that a policy evaluates at once: the smaller of the micro-batches of run and update; None for all."""
        update = walk(getattr(self.method, "update", None))
        limits = (self.micro_batch, *(getattr(component, "micro_batch", None) for _, component in update))
        return min((limit for limit in limits if limit), default=None)

    def asks_for(self, column: str) -> bool:
        """Whether a component of the method declares in `columns` that it reads this one, which an engine then fills."""
        return column in self.method.declared("columns")

    def now(self, setting: Any) -> Any:
        """Return the present value of a setting: the setting itself, or `setting(context)` where it is a function of the run."""
        return setting(self) if callable(setting) else setting

    def next_prompts(self, count: int) -> Prompts:
        """Draw the next prompts in the method's order."""
        return self.method.prompts(count, self)

    def verify(self, batch: Trajectories) -> Trajectories:
        """Fill the named `rewards` from the task's verifiers and call `observe`, unless the rewards are there."""
        if "rewards" in batch:
            return batch
        named = self.task.score(batch, self)
        self.observe(batch)
        return batch.replace(rewards=dict(named)) if named else batch

    def observe(self, batch: Trajectories) -> None:
        """Let the task record its own metrics of these rows."""
        observe = getattr(self.task, "observe", None)
        if observe is not None:
            observe(batch, self)


def prefix_engine(context: Context, who: str) -> PrefixEngine:
    """Return the run's engine as one that can resume from a prefix.

    Raises:
        UserError: the engine cannot; the message names the component that asked.
    """
    engine: Any = context.engine
    if not hasattr(engine, "resume") or not hasattr(engine, "texts"):
        raise UserError(f"{who} needs an engine that can resume from a prefix of a row; {type(engine).__name__} cannot")
    return engine
