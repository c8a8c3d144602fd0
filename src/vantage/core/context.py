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
    """Gathers decisions of the policy in the task."""

    def sample(self, prompts: Prompts, count: int, context: Context, *, greedy: bool = False) -> Trajectories:
        """Run `count` whole episodes from each prompt; rows of a prompt stand side by side and share `group`.

        `greedy` takes the most likely decision at each step instead of a draw.
        """
        ...

    def advance(self, rows: int, steps: int, context: Context) -> Trajectories:
        """Take `steps` more decisions in each of `rows` streams that go on from call to call."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return what is needed to go on."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` returned."""
        ...


class PrefixEngine(Engine, Protocol):
    """An engine that can also go on from any prefix and say what a row holds. A plan asks for it by `prefix_engine`."""

    max_length: int
    """Decisions that a row can have at most."""

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
        """Run on `count` times from row `rows[i]` of a batch, of which the first `positions[i]` decisions are kept; both [K].

        No row has ended at its position. `limit` bounds the new decisions of each.

        Returns:
            K * count whole rows: kept decisions first, with their `logp_old`; `length` counts both, `mask` holds the new ones
            alone. Rows of one start share `group`, and `parent` [K * count] is the row that they branched from.
        """
        ...

    def texts(self, batch: Trajectories) -> list[Any]:
        """Return what each row holds, in the form in which a prompt can hold it: text where the policy speaks."""
        ...


class Task(Protocol):
    """Where prompts come from, what is a good outcome, and how a policy is judged.

    It may offer `fields(ids)`: what the data says of each prompt besides prompt and answer (hints, a difficulty), a mapping each;
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
        """Return the named rewards [N] of finished rows; empty when rewards came with the decisions."""
        ...

    def evaluate(self, policy: Any, *, samples: int, seed: int) -> dict[str, float]:
        """Judge the policy on what it was not trained on."""
        ...


@dataclass
class Context:
    """Policy, named frozen policies, engine, task, progress, randomness and metrics, shared by all parts of a run."""

    method: Method
    policy: Policy
    engine: Engine
    task: Task
    generator: torch.Generator
    step: int = 0
    """Steps that are done."""
    total_steps: int = 1
    """Steps that the run will have."""
    policies: dict[str, Policy] = field(default_factory=dict)
    metrics: Metrics = field(default_factory=Metrics)
    micro_batch: int | None = None
    """Rows that a policy judges at once where no gradient is kept; None for all."""
    budget: Budget | None = None
    """Environment steps that are left, where the run's length is counted in them."""
    aside: bool = False
    """Whether this is for rows beside those that are learnt from (see `under`)."""

    @property
    def progress(self) -> float:
        """Share of the run that is done, in [0, 1]."""
        return min(self.step / max(self.total_steps, 1), 1.0)

    @property
    def device(self) -> torch.device:
        """Where the policy lives."""
        return next(self.policy.parameters()).device

    def record(self, name: str, value: Tensor | float, weight: float = 1.0) -> None:
        """Record a metric of this step (a weighted mean over its calls)."""
        self.metrics.record(name, value, weight)

    def record_total(self, name: str, total: Tensor | float, count: Tensor | float) -> None:
        """Record a mean as a sum and the number of what was summed; a count of 0 records nothing."""
        self.metrics.record_total(name, total, count)

    def record_mean(self, name: str, values: Tensor, mask: Tensor) -> None:
        """Record the mean of values over the decisions of the mask, both [N, T]; in a loss, so that no micro-batch changes it."""
        self.metrics.record_mean(name, values, mask)

    def derive(self, name: str, function: Callable[..., float], *of: str) -> None:
        """Record under `name` a function of the step's means of other names, such as the perplexity of a cross-entropy."""
        self.metrics.derive(name, function, *of)

    def under(self, prefix: str) -> Context:
        """Return this context for rows beside those that are learnt from: its metrics go under `prefix/`, or with "" nowhere."""
        return replace(self, metrics=self.metrics.under(prefix) if prefix else Metrics(), aside=True)

    def named(self, name: str) -> Policy:
        """Return a named frozen policy.

        Raises:
            UserError: no part declared it in `policies`, so nothing made it.
        """
        if name not in self.policies:
            raise UserError(
                f"there is no policy named {name!r}: the part that asks for it must declare it in `policies`"
            )
        return self.policies[name]

    def freeze(self, name: str) -> None:
        """Take a frozen copy of the policy as it is now under this name."""
        self.policies[name] = self.policy.frozen()

    def evaluate(
        self,
        batch: Trajectories,
        want: str = "logp",
        policy: Policy | None = None,
        read: Callable[[Evaluation, Trajectories], Tensor] | None = None,
    ) -> Tensor:
        """Return one output of a policy on a batch, [N, T, ...], without gradient and `micro_batch` rows at once.

        Args:
            batch: what is judged.
            want: the output's name ("logp", "entropy", "value", "hidden", "distribution").
            policy: who judges; None for the policy that learns.
            read: `(evaluation, rows)`: what is kept of the evaluation of some rows of the batch, so that a large output need never
                stand whole; None for the output.
        """
        judge = self.policy if policy is None else policy
        keep = read if read is not None else lambda evaluation, rows: getattr(evaluation, want)
        size = max(self.rows_at_once or len(batch), 1)
        with torch.no_grad():
            cut = [batch[start : start + size] for start in range(0, max(len(batch), 1), size)]
            parts = [keep(judge.evaluate(rows, frozenset({want})), rows) for rows in cut]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    @property
    def rows_at_once(self) -> int | None:
        """Rows that a policy judges at once, at most: the smaller of the run's micro-batch and the update's; None for all."""
        update = walk(getattr(self.method, "update", None))
        limits = (self.micro_batch, *(getattr(component, "micro_batch", None) for _, component in update))
        return min((limit for limit in limits if limit), default=None)

    def asks_for(self, column: str) -> bool:
        """Whether a component of the method declares in `columns` that it reads this one, which an engine then fills."""
        return column in self.method.declared("columns")

    def now(self, setting: Any) -> Any:
        """Return the present value of a setting: what it is, or, where it is a function of the run, `setting(context)`."""
        return setting(self) if callable(setting) else setting

    def next_prompts(self, count: int) -> Prompts:
        """Draw the next prompts in the method's order."""
        return self.method.prompts(count, self)

    def verify(self, batch: Trajectories) -> Trajectories:
        """Fill the named `rewards` by what the task's verifiers say, and `observe` the rows, unless the rewards are there."""
        if "rewards" in batch:
            return batch
        named = self.task.score(batch, self)
        self.observe(batch)
        return batch.replace(rewards=dict(named)) if named else batch

    def observe(self, batch: Trajectories) -> None:
        """Let the task record what is worth knowing of these rows; of those that are learnt from, under no prefix."""
        observe = getattr(self.task, "observe", None)
        if observe is not None:
            observe(batch, self)


def prefix_engine(context: Context, who: str) -> PrefixEngine:
    """Return the run's engine as one that goes on from prefixes.

    Raises:
        UserError: it cannot; the message names the part that asked.
    """
    engine: Any = context.engine
    if not hasattr(engine, "resume") or not hasattr(engine, "texts"):
        raise UserError(f"{who} goes on from the middle of a row, which {type(engine).__name__} cannot")
    return engine
