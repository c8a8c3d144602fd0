"""Losses of a deterministic actor: maximise the action value, and stay near an action of the data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

from torch import Tensor

from vantage.core import at_least, component
from vantage.core.context import Context
from vantage.core.protocols import Evaluation
from vantage.core.trajectories import Trajectories


@dataclass(frozen=True)
class DataAction:
    """Anchor: the action that the data took in the same state."""

    def __call__(self, action: Tensor, batch: Trajectories, context: Context) -> Tensor:
        """Return the data's action, [N, 1, A]."""
        return batch.action


@component
class AnchoredGradient:
    """-lam * Q1(s, pi(s)) + mean over coordinates of (pi(s) - anchor)^2, per row [N]; lam = alpha / mean |Q1(s, pi(s))|.

    TD3+BC, arXiv 2106.06860, equations 3 and 5. lam is taken over the whole minibatch and carries no gradient, so that the
    scale of Q does not matter; gradient flows through pi(s) alone, not into Q1.

    Attributes:
        alpha: weight of the action value, at least 0.
        anchor: `(pi(s), batch, context) -> Tensor` [N, 1, A]: the action towards which the actor is pulled; carries no gradient.
        pull: weight of the anchor; 0 removes it.
    """

    alpha: Annotated[float, at_least(0)] = 2.5
    anchor: Any = field(default_factory=DataAction)
    pull: Annotated[float, at_least(0)] = 1.0
    wants = frozenset({"mean", "q_mean"})
    unit = "batch"

    def __call__(self, evaluation: Evaluation, batch: Trajectories, context: Context) -> Tensor:
        """Return the loss."""
        action, q = evaluation.extras["mean"], evaluation.extras["q_mean"]
        size = q.detach().abs().mean()
        # Before the first critic step all values may be 0: the scale would then be infinite.
        lam = self.alpha / size.clamp(min=1e-8)
        context.record("q/policy", q.mean(), len(q))
        loss = -lam * q.squeeze(-1)
        if not self.pull:
            return loss
        distance = (action - self.anchor(action.detach(), batch, context).detach()).square().mean((1, 2))
        context.record("anchor/distance", distance.mean(), len(q))
        return loss + self.pull * distance
