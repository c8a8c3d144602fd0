"""What a part may ask for besides the batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vantage.core.errors import UserError
from vantage.core.protocols import Engine, Evaluation, Policy, Prompts, Task
from vantage.core.trajectories import Trajectories
from vantage.core.walk import walk

if TYPE_CHECKING:
    from vantage.core.method import Method


class Metrics:
    """Weighted means of what parts record in one step. Recording costs no arithmetic and never waits for the device."""

    def __init__(self) -> None:
        self._records: dict[str, list[tuple[Any, float]]] = {}
        self.latest: dict[str, Any] = {}
        """The last value recorded under each name, as it was given: what a controller reads."""

    def record(self, name: str, value: Tensor | float, weight: float = 1.0) -> None:
        """Add a value (a scalar; a tensor is detached, not read out) to the step's mean under `name`."""
        if isinstance(value, Tensor) and value.requires_grad:
            value = value.detach()
        self.latest[name] = value
        self._records.setdefault(name, []).append((value, weight))

    def collect(self) -> dict[str, float]:
        """Return the means and begin again. The one place that waits for the device."""
        collected = {}
        for name, records in self._records.items():
            weights = [weight for _, weight in records]
            tensors = [value for value, _ in records if isinstance(value, Tensor)]
            # One transfer a name, however often it was recorded.
            read = iter(torch.stack([t.reshape(()).float() for t in tensors]).tolist() if tensors else ())
            values = [next(read) if isinstance(value, Tensor) else float(value) for value, _ in records]
            if sum(weights):
                collected[name] = sum(v * w for v, w in zip(values, weights, strict=True)) / sum(weights)
        self._records.clear()
        return collected


class _Under(Metrics):
    """Records in other metrics, under names that begin with a prefix."""

    def __init__(self, whole: Metrics, prefix: str) -> None:
        super().__init__()
        self._whole, self._prefix = whole, prefix

    def record(self, name: str, value: Tensor | float, weight: float = 1.0) -> None:
        self._whole.record(f"{self._prefix}/{name}", value, weight)


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

    def under(self, prefix: str) -> Context:
        """Return this context for rows beside those that are learnt from: its metrics go under `prefix/`, or with "" nowhere."""
        return replace(self, metrics=_Under(self.metrics, prefix) if prefix else Metrics(), aside=True)

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
        read: Callable[[Evaluation], Tensor] | None = None,
    ) -> Tensor:
        """Return one output of a policy on a batch, [N, T, ...], without gradient and `micro_batch` rows at once.

        Args:
            batch: what is judged.
            want: the output's name ("logp", "entropy", "value", "hidden", "distribution").
            policy: who judges; None for the policy that learns.
            read: what is kept of each evaluation, so that a large output need never stand whole; None for the output.
        """
        judge = self.policy if policy is None else policy
        keep = read if read is not None else lambda evaluation: getattr(evaluation, want)
        size = max(self.rows_at_once or len(batch), 1)
        with torch.no_grad():
            parts = [
                keep(judge.evaluate(batch[start : start + size], frozenset({want})))
                for start in range(0, max(len(batch), 1), size)
            ]
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
