"""Polyak averages of networks: target networks and slow opponents; and updates that run every few steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch

from vantage.core import above, at_least, at_most, component, memory
from vantage.core.context import Context
from vantage.core.trajectories import Trajectories
from vantage.functions.parameters import polyak, twins


@component
class SlowCopy:
    """Controller: after every optimiser step moves the named frozen policy towards the policy (Polyak average).

    copy <- (1 - rate) * copy + rate * policy

    Attributes:
        name: of the frozen policy.
        rate: above 0, at most 1; 1 copies.
    """

    name: str = "target"
    rate: Annotated[float, above(0), at_most(1)] = 0.05
    every = "minibatch"
    _memory: dict[str, Any] = memory()

    @property
    def policies(self) -> frozenset[str]:
        """The copy."""
        return frozenset({self.name})

    def prepare(self, context: Context) -> None:
        """Pair the parameters."""
        self._memory["pairs"] = twins(context.policy, context.named(self.name))

    def __call__(self, context: Context) -> None:
        """Move the copy."""
        pairs = self._memory["pairs"]
        polyak([copy for _, copy in pairs], [live for live, _ in pairs], self.rate)

    def state_dict(self) -> dict[str, Any]:
        """The copy's weights, which change in place."""
        return {str(place): copy.detach().clone() for place, (_, copy) in enumerate(self._memory["pairs"])}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore from `state_dict()`."""
        with torch.no_grad():
            for place, (_, copy) in enumerate(self._memory["pairs"]):
                copy.copy_(state[str(place)])


@component
class MoveTargets:
    """Controller: every `every_steps` steps moves the policy's target networks towards the networks (Polyak average).

    The policy names them in `targets()`: pairs (network's parameter, target's).

    Attributes:
        rate: tau, above 0, at most 1.
        every_steps: at least 1.
        every: "step" of the training loop, or "minibatch": after each optimiser step.
    """

    rate: Annotated[float, above(0), at_most(1)] = 0.005
    every_steps: Annotated[int, at_least(1)] = 1
    every: Literal["step", "minibatch"] = "step"

    def __call__(self, context: Context) -> None:
        """Move the targets in every `every_steps`-th step."""
        if context.step % self.every_steps:
            return
        policy: Any = context.policy
        pairs = policy.targets()
        polyak([target for _, target in pairs], [live for live, _ in pairs], self.rate)


@component
class Every:
    """Update that runs in every `steps`-th step only, first in step number `steps`; the other steps leave the policy unchanged.

    Attributes:
        steps: at least 1.
        update: the update to run.
    """

    steps: Annotated[int, at_least(1)]
    update: Any

    @property
    def optimizer_steps(self) -> float | None:
        """Mean number of optimiser steps per batch; None where the update does not tell."""
        inner = getattr(self.update, "optimizer_steps", None)
        return None if inner is None else inner / self.steps

    def __call__(self, batch: Trajectories, context: Context) -> None:
        """Update in every `steps`-th step."""
        if (context.step + 1) % self.steps == 0:
            self.update(batch, context)
