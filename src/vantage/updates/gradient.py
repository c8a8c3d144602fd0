"""Gradient update: epochs of minibatches, each a gradient, a norm clip and an optimiser step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import field
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from vantage.core import above, at_least, component, memory, one_of
from vantage.core.context import Context
from vantage.core.errors import UserError
from vantage.core.loss import backward
from vantage.core.trajectories import Trajectories
from vantage.functions.groups import group_index
from vantage.functions.whitening import whiten
from vantage.updates.optimizers import Adam, Constant

DIVERGENCE = "kl/old"
"""The metric that `target_kl` bounds."""
_UNITS = ("auto", "decision", "row", "group")


@component
class GradientUpdate:
    """Epochs of shuffled minibatches; in each: loss, gradient, transforms, norm clip, optimiser step.

    Attributes:
        optimizer: makes the optimiser (`Adam`, `SGD`, or anything with `lr` and `build(parameters)`).
        schedule: `(step, total_steps) -> factor` on the learning rate.
        epochs: passes over the batch; a function of the context where it changes in the run.
        minibatches: number of minibatches in an epoch.
        unit: what is shuffled: "decision", "row" or "group" (groups stay whole); "auto" takes the smallest that the policy
            (decisions of one with memory stay in their row), the averaging (one that counts rows keeps them) and the loss (one
            over groups keeps those whole) allow.
        normalize_advantage: standardise the advantages within each minibatch, eps 1e-8: True by the sample's standard deviation,
            "population" by the population's.
        max_grad_norm: the gradient's global L2 norm is scaled down to this; None leaves it.
        micro_batch: rows differentiated at once; None for the whole minibatch. It changes memory, not the gradient.
        target_kl: stop the passes when the k3 estimate of KL(old || new), the mean over an epoch's decisions, exceeds it; None
            never stops.
        transforms: `(parameters, context) -> None` each, between gradient and clip; may change the gradients in place.
    """

    optimizer: Any = field(default_factory=Adam)
    schedule: Any = field(default_factory=Constant)
    epochs: Annotated[int, at_least(1)] | Callable[[Context], int] = 1
    minibatches: Annotated[int, at_least(1)] = 1
    unit: Annotated[str, one_of(_UNITS)] = "auto"
    normalize_advantage: bool | Literal["population"] = False
    max_grad_norm: Annotated[float, above(0)] | None = 1.0
    micro_batch: Annotated[int, at_least(1)] | None = None
    target_kl: Annotated[float, at_least(0)] | None = None
    transforms: tuple[Any, ...] = ()
    _memory: dict[str, Any] = memory()

    @property
    def optimizer_steps(self) -> float | None:
        """Largest number of optimiser steps per batch; None where the number of epochs changes in the run."""
        return self.epochs * self.minibatches if isinstance(self.epochs, int) else None

    def prepare(self, context: Context) -> None:
        """Make the optimiser of the policy's trainable parameters."""
        parameters = [p for p in context.policy.parameters() if p.requires_grad]
        if not parameters:
            raise UserError("the policy has no parameter that requires gradient: there is nothing to train")
        self._memory.update(parameters=parameters, optimizer=self.optimizer.build(parameters))

    def __call__(self, batch: Trajectories, context: Context) -> None:
        """Update the policy."""
        optimizer: torch.optim.Optimizer = self._memory["optimizer"]
        factor = self.schedule(context.step, context.total_steps)
        for group in optimizer.param_groups:
            group["lr"] = self.optimizer.lr * factor
        context.record("lr", self.optimizer.lr * factor)
        chosen = self._unit(context)
        batch = batch.detach()
        if chosen == "decision":
            batch = batch.flatten()
        if not bool(batch.mask.all()):
            batch = batch.select(batch.mask.any(-1))
        if not len(batch):
            raise UserError("the batch has no decision in the loss: every row's mask is empty")
        for _ in range(context.now(self.epochs)):
            before = context.metrics.recorded(DIVERGENCE)
            for part in minibatches(batch, self.minibatches, chosen, context.generator):
                self.step(part, context)
            if self.target_kl is not None and context.metrics.mean(DIVERGENCE, since=before) > self.target_kl:
                context.record("update/stopped_early", 1.0)
                break

    def step(self, part: Trajectories, context: Context) -> None:
        """Take one optimiser step on a minibatch."""
        parameters: list[torch.nn.Parameter] = self._memory["parameters"]
        optimizer: torch.optim.Optimizer = self._memory["optimizer"]
        if self.normalize_advantage:
            ddof = 0 if self.normalize_advantage == "population" else 1
            part = part.replace(advantage=whiten(part.advantage, part.mask, ddof=ddof))
        for parameter in parameters:
            parameter.grad = None
        self.differentiate(part, context)
        for transform in self.transforms:
            transform(parameters, context)
        norm = clip_gradient(parameters, self.max_grad_norm)
        context.record("grad_norm", norm)
        optimizer.step()
        for controller in context.method.controllers:
            if getattr(controller, "every", "step") == "minibatch":
                controller(context)

    def differentiate(self, part: Trajectories, context: Context) -> None:
        """Compute the gradient of the method's loss on a minibatch into the parameters' `.grad`, which is None before."""
        backward(part, context, self.micro_batch)

    def _unit(self, context: Context) -> str:
        # Flattening loses row lengths and the row count.
        loose = context.policy.memoryless and context.method.averaging in ("token-mean", "group")
        smallest = "decision" if loose else "row"
        # A term over the whole minibatch allows any division into minibatches; units that the other terms join must stay whole.
        joined = [unit for unit in context.method.units if unit != "batch"]
        needed = joined[-1] if joined and joined[-1] != "decision" else smallest
        if self.unit == "auto":
            return needed
        order = ("decision", "row", "group")
        if order.index(self.unit) < order.index(needed):
            raise UserError(
                f"GradientUpdate.unit={self.unit!r} splits rows or groups that the loss, the averaging or the policy needs whole:"
                f" set {needed!r} or a larger unit"
            )
        return self.unit

    def state_dict(self) -> dict[str, Any]:
        """The optimiser's state."""
        return {"optimizer": self._memory["optimizer"].state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore it."""
        self._memory["optimizer"].load_state_dict(state["optimizer"])


def clip_gradient(parameters: list[torch.nn.Parameter], limit: float | None) -> Tensor:
    """Scale the gradients down to a global L2 norm of at most `limit`; return the norm before."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return torch.zeros(())
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    if limit is not None:
        torch._foreach_mul_(gradients, (limit / (norm + 1e-6)).clamp(max=1.0))
    return norm


def minibatches(batch: Trajectories, count: int, unit_: str, generator: torch.Generator) -> Iterator[Trajectories]:
    """Split a shuffled batch into `count` minibatches of nearly equal size; with unit "group", groups stay whole.

    One gather shuffles the whole batch; the minibatches are views of it.
    """
    rows = len(batch)
    if count == 1:
        yield batch
        return
    if unit_ == "group":
        index, groups = group_index(batch.group)
        order = torch.randperm(groups, generator=generator).to(index.device)
        place = torch.empty_like(order)
        place[order] = torch.arange(groups, device=order.device)
        shuffled = batch.select(torch.argsort(place[index], stable=True))
        sizes = torch.bincount(place[index], minlength=groups)
        ends = sizes.cumsum(0)
        cuts = [int(ends[part.max()]) for part in torch.arange(groups).tensor_split(min(count, groups))]
    else:
        shuffled = batch.select(torch.randperm(rows, generator=generator).to(batch.device))
        count = min(count, rows)
        cuts = [(i + 1) * rows // count for i in range(count)]
    start = 0
    for end in cuts:
        yield shuffled[start:end]
        start = end
