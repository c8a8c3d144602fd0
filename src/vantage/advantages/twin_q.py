"""Twin action values with targets, trained on single transitions (TD3's critic)."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Any

import torch

from vantage.core import at_least, between, component, memory
from vantage.core.context import Context
from vantage.core.errors import UserError
from vantage.core.trajectories import Trajectories


@component
class TwinQ:
    """Q1 and Q2, fitted in every step to one bootstrap target (TD3, arXiv 1802.09477, eqs. 10, 14 and algorithm 1).

        a' = clip(target_actor(s') + clip(noise * e, -limit, limit), -1, 1)          e standard normal
        y  = r + gamma * (1 - terminated) * min(Q1', Q2')(s', a')                    loss = mean (Q1 - y)^2 + mean (Q2 - y)^2

    Reads `observation`, `action`, `reward`, `next_observation`, `terminated`, rows of one decision. The policy makes the
    networks; a controller (`MoveTargets`) updates their targets.

    Attributes:
        gamma: discount, 0 to 1.
        noise: standard deviation of the target action's noise, in units of the action's bound.
        limit: where it is clipped.
        optimizer: of the action values alone (`Adam`).
    """

    gamma: Annotated[float, between(0, 1)] = 0.99
    noise: Annotated[float, at_least(0)] = 0.2
    limit: Annotated[float, at_least(0)] = 0.5
    optimizer: Any = field(kw_only=True)
    _memory: dict[str, Any] = memory()
    needs = frozenset({"transitions"})

    def prepare(self, context: Context) -> None:
        """Add the networks to the policy, and make their optimiser."""
        policy: Any = context.policy
        if not hasattr(policy, "add_critics") or not hasattr(policy, "mean_action"):
            raise UserError(f"TwinQ: {type(policy).__name__} has no action values: take a task of the field offline")
        policy.add_critics()
        self._memory["optimizer"] = self.optimizer.build(policy.critics.parameters())

    def __call__(self, batch: Trajectories, context: Context) -> Trajectories:
        """Return the batch: no component reads state values."""
        return batch

    def fit(self, batch: Trajectories, context: Context) -> None:
        """Take one step towards the targets."""
        policy: Any = context.policy
        with torch.no_grad():
            noise = torch.randn(batch.action.shape, generator=context.generator).to(batch.device)
            following = policy.mean_action(batch.next_observation, target=True)
            following = (following + (self.noise * noise).clamp(-self.limit, self.limit)).clamp(-1, 1)
            bootstrap = policy.q(batch.next_observation, following, target=True).amin(0)
            aim = batch.reward + self.gamma * torch.where(batch.terminated, 0.0, bootstrap)
        values = policy.q(batch.observation, batch.action)
        loss = (values - aim).square().mean((1, 2)).sum()
        optimizer = self._memory["optimizer"]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        context.record("loss/value", loss)
        context.record("value/mean", values.detach().mean())
