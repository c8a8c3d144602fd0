"""What a part may ask for besides the batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vantage.core.costs import Budget
from vantage.core.errors import UserError
from vantage.core.protocols import Engine, Evaluation, Policy, Prompts, Task
from vantage.core.trajectories import Trajectories
from vantage.core.walk import walk
from vantage.metrics import Metrics

if TYPE_CHECKING:
    from vantage.core.method import Method


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
