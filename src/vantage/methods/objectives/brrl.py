"""BPO: regresses the ratio onto the best value within its bounds, instead of clipping it. (S224)

If the ratio must lie in [1 - eps, 1 + eps], the best policy is known: 1 + eps where the action value is above its median under
the old policy, 1 - eps below. PPO has no gradient beyond the bound; here an absolute error corrects overshoot.

    rho* = 1 - eps + 2 eps sigmoid((Q - U) / softness)       Q = returns, U = median head, or V without one
    loss = mean |(ratio - rho*) (Q - V)| + c_v (Q - V)^2 + c_u [softplus(Q - U) - (Q - U) / 2] - c_e H

rho* and the weights carry no gradient. arXiv 2604.18578 (BRRL); losses as in the authors' code, defaults as in their base
configuration of MuJoCo. Their reported runs change it (rate, gamma 0.99 and lam 0.95 where nothing is said):

    Ant          8 minibatches, rate 1e-4                 Humanoid  512 steps, 4 minibatches, 5 epochs, rate 1e-4, eps 0.2, norm 2
    HalfCheetah  512 steps, 8 minibatches, 20 epochs, rate 2.0633e-5, eps 0.1, gamma 0.98, lam 0.92, c_v 0.58096, c_e 4.01762e-4
    Hopper       4 x 512 steps, 64 minibatches, rate 9.808e-5, eps 0.25, softness 10, gamma 0.999
    Swimmer      4 x 1024 steps, 16 minibatches, eps 0.1, softness 0.01, gamma 0.9999, lam 0.98
    Atari        8 x 128 steps, 4 minibatches, 5 epochs, rate 2.5e-4, gamma 0.98, c_e 0.001

Networks and inputs are the task's: theirs are 256-256 relu with the median's head on top of the value's layers (here a network of
its own), and neither observations nor rewards are scaled. The form for groups of answers is brrl-group.
"""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from vantage.advantages.critic import BOOTSTRAP, add_critic, fill_values
from vantage.annotations import above, at_least, between
from vantage.core.component import component
from vantage.core.context import Context
from vantage.core.errors import UserError
from vantage.core.method import Method
from vantage.core.protocols import Evaluation
from vantage.core.trajectories import Trajectories
from vantage.methods.claim import Claim
from vantage.methods.control.ppo import ppo
from vantage.methods.registry import Paper, method
from vantage.objectives.ratio_target import ratio_regression

PAPER = Paper(
    "Bounded Ratio Reinforcement Learning",
    "Yunke Ao and Le Chen and Bruce D. Lee and Assefa S. Wahd and Aline Czarnobai and Philipp Fürnstahl and"
    " Bernhard Schölkopf and Andreas Krause",
    2026,
    arxiv="2604.18578",
)
MEDIAN = "median"


@component
class MedianCritic:
    """Fills values from the critic; trains it and, where there is one, the median's head by the loss terms of the page.

    Attributes:
        value: c_v.
        median: c_u; None for a policy without that head.
    """

    value: Annotated[float, at_least(0)] = 0.5
    median: Annotated[float, at_least(0)] | None = 0.5
    columns = BOOTSTRAP

    @property
    def needs(self) -> frozenset[str]:
        """A critic, and a head for the median."""
        return frozenset({"critic"} if self.median is None else {"critic", "heads"})

    @property
    def wants(self) -> frozenset[str]:
        """Outputs that the loss reads: the value, and the median's head."""
        return frozenset({"value"} if self.median is None else {"value", MEDIAN})

    def prepare(self, context: Context) -> None:
        """Add critic and head to the policy."""
        add_critic(context)
        if self.median is not None:
            if not hasattr(context.policy, "add_head"):
                raise UserError(f"{type(context.policy).__name__} has no heads: set median=false, which needs none")
            context.policy.add_head(MEDIAN)

    def __call__(self, batch: Trajectories, context: Context) -> Trajectories:
        """Fill `value` and `next_value`; no gradient."""
        return fill_values(batch, context)

    def loss(self, evaluation: Evaluation, batch: Trajectories, context: Context) -> Tensor:
        """Return the loss per decision [N, T]."""
        loss = self.value * (batch.returns - evaluation.value).square()
        if self.median is not None:
            gap = batch.returns - evaluation.extras[MEDIAN]
            loss = loss + self.median * (F.softplus(gap) - 0.5 * gap)
        return loss


@component
class BoundedRatio:
    """BPO's policy loss; gradient flows through `logp` alone.

    Attributes:
        eps: half the width of the bounds, 0 to 1.
        softness: of the step at the median, above 0.
        median: whether U is the median's head, otherwise V.
    """

    eps: Annotated[float, between(0, 1)] = 0.3
    softness: Annotated[float, above(0)] = 0.001
    median: bool = True

    @property
    def wants(self) -> frozenset[str]:
        """Outputs that the loss reads: log-probabilities and both values."""
        return frozenset({"logp", "value", *((MEDIAN,) if self.median else ())})

    def __call__(self, evaluation: Evaluation, batch: Trajectories, context: Context) -> Tensor:
        """Return the loss per decision [N, T]."""
        with torch.no_grad():
            middle = evaluation.extras[MEDIAN] if self.median else evaluation.value
            target = 1 - self.eps + 2 * self.eps * torch.sigmoid((batch.returns - middle) / self.softness)
            weight = batch.returns - evaluation.value
        return ratio_regression(evaluation, batch, target, weight, self.eps, context)


@method(
    id="S224",
    papers=PAPER,
    source="bounded-ratio-rl/bounded_ratio_rl@64ff1cd cfgs/algo/bpo/mujoco.yaml",
    needs=("streams", "critic", "heads"),
    base=ppo,
    without=("eps", "clip_value"),
    anneal=False,
    max_grad_norm=1.0,
)
def brrl(
    base: Method,
    eps: float = 0.3,
    softness: float = 0.001,
    median: bool = True,
    value_coefficient: float = 0.5,
    median_coefficient: float = 0.5,
) -> Method:
    """eps: half the width of the ratio's bounds; softness: of the step at the median; median: whether U is a separate head
    instead of V; value_coefficient: c_v, weight of the squared error of values; median_coefficient: c_u, weight of the median's
    loss."""
    return base.adapt("update", normalize_advantage=False).replace(
        values=MedianCritic(value_coefficient, median_coefficient if median else None),
        objective=BoundedRatio(eps, softness, median),
    )


claim = Claim(
    name="control",
    arena="cartpole-100k",
    against="ppo",
    direction="no worse",
    margin=25.0,
    settings={"rows": 4, "length": 128, "epochs": 4, "minibatches": 4, "lr": 2.5e-4},
    against_settings={"rows": 4, "length": 128, "epochs": 4, "minibatches": 4, "lr": 2.5e-4, "anneal": False},
    note="BPO against PPO at the same epochs; the margin is 5 % of the highest return.",
)
