"""Advantages from rewards over time: generalised advantage estimation, rewards to go. Nothing here carries gradient."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from torch import Tensor

from vantage.core import between, component
from vantage.core.context import Context
from vantage.core.trajectories import Trajectories, credit_flows
from vantage.functions.returns import gae
from vantage.functions.whitening import whiten

DISCOUNT = property(
    lambda self: frozenset({("gamma", self.gamma)}),
    doc="Discount of the return by which the engine scales rewards: that of this component.",
)


@component
class GAE:
    """Generalised advantage estimation (arXiv 1506.02438, eq. 16), and returns = advantage + value for the critic.

        delta_t = r_t + gamma * V(s_{t+1}) - V(s_t);   A_t = delta_t + gamma * lam * A_{t+1}

    V(s_{t+1}) is 0 after a termination and the critic's value of the final state after a truncation; the sum ends at both. What the
    environment inserted takes no time: t + 1 is the policy's next decision, whose value is bootstrapped, and gamma and lam count
    the policy's decisions.

    Attributes:
        gamma: discount, 0 to 1.
        lam: trace decay, 0 to 1.
        whiten: standardise the advantages over the batch's decisions.
    """

    gamma: Annotated[float, between(0, 1)] = 0.99
    lam: Annotated[float, between(0, 1)] = 0.95
    whiten: bool = False
    engine_options = DISCOUNT

    def __call__(self, batch: Trajectories, context: Context) -> Trajectories:
        """Fill `advantage` and `returns`, both [N, T]."""
        advantage, returns = gae(
            batch.reward,
            batch.value,
            batch.next_value,
            batch.terminated,
            batch.truncated,
            batch.mask,
            self.gamma,
            self.lam,
            credit_flows(batch),
        )
        if self.whiten:
            advantage = whiten(advantage, batch.mask)
        return batch.replace(advantage=advantage, returns=returns)


@component
class RewardToGo:
    """Advantage = discounted sum of the rewards that follow, less the critic's value where there is one (`baseline`).

    The sum passes over what the environment inserted, and ends where an episode ends; gamma counts the policy's decisions.

    Attributes:
        gamma: discount, 0 to 1.
        baseline: subtract `value`, and bootstrap from `next_value` where a row was cut.
        whiten: standardise over the batch's decisions.
        ddof: of the variance then, 1 for the sample's, 0 for the population's.
    """

    gamma: Annotated[float, between(0, 1)] = 1.0
    baseline: bool = False
    whiten: bool = False
    ddof: Literal[0, 1] = 1
    engine_options = DISCOUNT

    def __call__(self, batch: Trajectories, context: Context) -> Trajectories:
        """Fill `advantage` and `returns`, both [N, T]."""
        zero = torch.zeros_like(batch.reward)
        value: Tensor = batch.value if self.baseline else zero
        next_value: Tensor = batch.next_value if self.baseline else zero
        # With lambda = 1 the estimate is the return less the value.
        advantage, returns = gae(
            batch.reward,
            value,
            next_value,
            batch.terminated,
            batch.truncated,
            batch.mask,
            self.gamma,
            1.0,
            credit_flows(batch),
        )
        if self.whiten:
            advantage = whiten(advantage, batch.mask, ddof=self.ddof)
        return batch.replace(advantage=advantage, returns=returns)
