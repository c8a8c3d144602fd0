"""Losses of a deterministic actor: climb the action value, and stay near an action that the data knows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from vantage.core.context import Context
from vantage.core.errors import UserError
from vantage.core.protocols import Evaluation
from vantage.core.trajectories import Trajectories


@dataclass(frozen=True)
class DataAction:
    """Anchor: the action that the data took in the same state."""

    def __call__(self, action: Tensor, batch: Trajectories, context: Context) -> Tensor:
        """Return it, [N, 1, A]."""
        return batch.action


@dataclass(frozen=True)
class AnchoredGradient:
    """-lam * Q1(s, pi(s)) + mean over coordinates of (pi(s) - anchor)^2, per row [N]; lam = alpha / mean |Q1(s, pi(s))|.

    TD3+BC, arXiv 2106.06860, equations 3 and 5. lam is taken over the whole minibatch and carries no gradient, so that the
    scale of Q does not matter; gradient flows through pi(s) alone, not into Q1.

    Attributes:
        alpha: weight of the action value, at least 0.
        anchor: `(pi(s), batch, context) -> Tensor` [N, 1, A]: where the actor is pulled; what it returns is a constant.
        pull: weight of the anchor; 0 leaves it out.
    """

    alpha: float = 2.5
    anchor: Any = field(default_factory=DataAction)
    pull: float = 1.0
    wants = frozenset({"mean", "q_mean"})
    unit = "batch"

    def __post_init__(self) -> None:
        for name in ("alpha", "pull"):
            if not getattr(self, name) >= 0:
                raise UserError(f"AnchoredGradient.{name}={getattr(self, name)} is out of range: at least 0")

    def __call__(self, evaluation: Evaluation, batch: Trajectories, context: Context) -> Tensor:
        """Return the loss."""
        action, q = evaluation.extras["mean"], evaluation.extras["q_mean"]
        size = q.detach().abs().mean()
        # Before the first critic step all values may be 0: then there is nothing to climb.
        lam = self.alpha / size.clamp(min=1e-8)
        context.record("q/policy", q.mean())
        loss = -lam * q.squeeze(-1)
        if not self.pull:
            return loss
        distance = (action - self.anchor(action.detach(), batch, context).detach()).square().mean((1, 2))
        context.record("anchor/distance", distance.mean())
        return loss + self.pull * distance
