"""Finite-horizon tabular MDPs as tensors, and exact dynamic programming.

Every tensor may have leading dimensions, written [...], for a batch of MDPs or of policies. They broadcast.
Steps are h = 0 .. H-1, the policy is [..., H, S, A], and there is no discount.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vantage.core.errors import UserError


@dataclass(frozen=True)
class MDP:
    """Finite-horizon MDP.

    Attributes:
        transition: P(s' | h, s, a) [..., H, S, A, S].
        reward: expected reward [..., H, S, A].
        start: distribution of the first state [..., S].

    Raises:
        UserError: shapes do not fit, or probabilities are invalid.
    """

    transition: Tensor
    reward: Tensor
    start: Tensor

    def __post_init__(self) -> None:
        steps, states, actions = self.reward.shape[-3:]
        if tuple(self.transition.shape[-4:]) != (steps, states, actions, states) or self.start.shape[-1] != states:
            raise UserError(
                f"MDP: transition {tuple(self.transition.shape)}, reward {tuple(self.reward.shape)} and start"
                f" {tuple(self.start.shape)} do not fit: they must end in [H, S, A, S], [H, S, A] and [S]"
            )
        for name, law in (("transition", self.transition), ("start", self.start)):
            if bool((law < 0).any()) or not torch.allclose(law.sum(-1), law.new_ones(()), atol=1e-6):
                raise UserError(f"MDP: {name} must be probabilities, at least 0 and with sum 1 over the last dimension")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, S, A)."""
        steps, states, actions = self.reward.shape[-3:]
        return steps, states, actions


def backup(
    transition: Tensor, payoff: Tensor, policy: Tensor | None = None, growth: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Return Q [..., H, S, A] and V [..., H, S] of a payoff, backwards from the last step.

        Q_h(s, a) = payoff_h(s, a) + growth * sum_s' P_h(s' | s, a) V_{h+1}(s')        V_h(s) = sum_a policy_h(a | s) Q_h(s, a)

    Without a policy V is the maximum over actions. Gradient flows through payoff and policy.

    Args:
        transition: [..., H, S, A, S].
        payoff: [..., H, S, A]; actions may be broadcast ([..., H, S, 1]).
        policy: [..., H, S, A].
        growth: factor on later payoffs per step, as a discount; 1 for returns.
    """
    steps, states, actions = transition.shape[-4:-1]
    batch = torch.broadcast_shapes(
        transition.shape[:-4], payoff.shape[:-3], policy.shape[:-3] if policy is not None else ()
    )
    payoff = payoff.expand(*batch, steps, states, actions)
    moves = transition.flatten(-3, -2)
    qs: list[Tensor] = []
    vs: list[Tensor] = []
    for h in reversed(range(steps)):
        q = payoff[..., h, :, :]
        if vs:
            q = q + growth * (moves[..., h, :, :] @ vs[-1].unsqueeze(-1)).view(q.shape)
        qs.append(q)
        vs.append(q.amax(-1) if policy is None else (policy[..., h, :, :] * q).sum(-1))
    return torch.stack(qs[::-1], -3), torch.stack(vs[::-1], -2)


def occupancy(transition: Tensor, start: Tensor, policy: Tensor) -> Tensor:
    """Return the distribution of the state at each step [..., H, S]. Gradient flows through the policy."""
    steps = transition.shape[-4]
    moves = transition.flatten(-3, -2)
    law = [start.expand(*torch.broadcast_shapes(transition.shape[:-4], start.shape[:-1], policy.shape[:-3]), -1)]
    for h in range(steps - 1):
        taken = (law[-1].unsqueeze(-1) * policy[..., h, :, :]).flatten(-2)
        law.append((taken.unsqueeze(-2) @ moves[..., h, :, :]).squeeze(-2))
    return torch.stack(law, -2)


def value(mdp: MDP, policy: Tensor) -> Tensor:
    """Return the policy's expected return from the start [...]."""
    return (backup(mdp.transition, mdp.reward, policy)[1][..., 0, :] * mdp.start).sum(-1)


def optimal_value(mdp: MDP) -> Tensor:
    """Return the optimal expected return from the start [...]."""
    return (backup(mdp.transition, mdp.reward)[1][..., 0, :] * mdp.start).sum(-1)


def greedy(q: Tensor) -> Tensor:
    """Return the greedy deterministic policy [..., A] of action values [..., A], on ties the first action."""
    return torch.nn.functional.one_hot(q.argmax(-1), q.shape[-1]).to(q.dtype)


def uniform(mdp: MDP) -> Tensor:
    """Return the uniform policy [H, S, A]."""
    steps, states, actions = mdp.shape
    return torch.full((steps, states, actions), 1.0 / actions, dtype=mdp.reward.dtype, device=mdp.reward.device)
