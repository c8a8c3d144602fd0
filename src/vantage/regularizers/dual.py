"""Lagrange multipliers: coefficients of a constraint that move outside of the loss, by dual ascent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from vantage.core import above, at_least, component, memory, one_of
from vantage.core.context import Context

_MODES = ("log", "add", "fixed")


@component
class Multiplier:
    """lambda >= 0 of the constraint E[m] <= bound. A loss term reads it and measures m; `DualAscent` updates it.

        "log":   lambda <- lambda * exp(clip(rate * (m / bound - 1), -1, 1)), held in [least, limit]
        "add":   lambda <- clip(lambda + rate * (m - bound), 0, limit)
        "fixed": lambda stays

    m is the mean over all measurements since the last update, so that micro-batches count as one. Everything stays on the
    loss's device, without synchronisation.

    Attributes:
        start: lambda at first, at least 0.
        bound: of the constraint, above 0.
        rate: of the ascent, at least 0.
        mode: "log", "add" or "fixed".
        limit: largest lambda, above 0.
        least: smallest lambda of "log", which cannot leave 0; above 0.
    """

    start: Annotated[float, at_least(0)] = 1.0
    bound: Annotated[float, above(0)] = 0.02
    rate: Annotated[float, at_least(0)] = 1.0
    mode: Annotated[str, one_of(_MODES)] = "log"
    limit: Annotated[float, above(0)] = 1e3
    least: Annotated[float, above(0)] = 1e-6
    _memory: dict[str, Tensor] = memory()

    def value(self, device: torch.device | str = "cpu") -> Tensor:
        """Return lambda, a scalar without gradient."""
        held = self._memory.get("value")
        if held is None or held.device != torch.device(device):
            held = torch.tensor(self.start, device=device) if held is None else held.to(device)
            self._memory["value"] = held
        return held

    @torch.no_grad()
    def measure(self, values: Tensor, mask: Tensor) -> None:
        """Record m [N, T] where the mask holds."""
        total, count = torch.where(mask, values, 0.0).sum().float(), mask.sum()
        if "total" in self._memory:
            total, count = self._memory["total"] + total, self._memory["count"] + count
        self._memory.update(total=total, count=count)

    def ascend(self) -> Tensor | None:
        """Update lambda by the mean of m since the last update; return that mean, None if there was no measurement."""
        if "total" not in self._memory:
            return None
        mean = self._memory.pop("total") / self._memory.pop("count").clamp(min=1)
        value = self.value(mean.device)
        if self.mode == "log":
            step = (self.rate * (mean / self.bound - 1)).clamp(-1, 1)
            value = (value * step.exp()).clamp(self.least, self.limit)
        elif self.mode == "add":
            value = (value + self.rate * (mean - self.bound)).clamp(0, self.limit)
        self._memory["value"] = value
        return mean


@dataclass(frozen=True)
class DualAscent:
    """Controller that updates the `multiplier` of every component of the loss that has one after each optimiser step."""

    every = "minibatch"

    def __call__(self, context: Context) -> None:
        """Update the multipliers, and record each with the mean that it bounds."""
        for _, part in context.method.components():
            held = getattr(part, "multiplier", None)
            if isinstance(held, Multiplier):
                label = getattr(part, "label", type(part).__name__.lower())
                context.record(f"multiplier/{label}", held.value(context.device))
                mean = held.ascend()
                if mean is not None:
                    context.record(f"constraint/{label}", mean)
