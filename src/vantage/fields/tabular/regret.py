"""Exact regret: the expected return of the best fixed policy less that of the policies played."""

from __future__ import annotations

import torch
from torch import Tensor

from vantage.core.errors import UserError
from vantage.fields.tabular.episodes import Round, World
from vantage.fields.tabular.mdp import backup, occupancy, optimal_value

BLOCK = 512
"""Number of plans whose values are computed together."""


class Regret:
    """Expected regret so far [R], against the best fixed policy for the episodes so far.

    regret = max over policies of sum_t V(policy; r_t)  -  sum_t V(pi_t; r_t), both by dynamic programming, without sampling
    noise. The transition probabilities do not change, so that the best policy is that of the sum of the r_t.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.episodes = 0
        self._waiting: list[Round] = []
        self._earned: Tensor | float = 0.0
        self._tables = world.tables.new_zeros(len(world.tables))

    def add(self, round_: Round) -> None:
        """Add a plan that is played.

        Raises:
            UserError: its episodes begin at a later step, where regret is not defined.
        """
        if round_.plan.step:
            raise UserError(
                "regret is defined for whole episodes; this learner begins some at a later step: measure its gap instead"
            )
        self.episodes += round_.plan.episodes
        self._waiting.append(round_)
        if len(self._waiting) >= BLOCK:
            self._settle()

    def __call__(self) -> Tensor:
        """Return the regret [R]."""
        self._settle()
        mdp = self.world.mdp
        total = (self._tables.view(-1, 1, 1, 1) * self.world.tables).sum(0)
        return (backup(mdp.transition, total)[1][0] * mdp.start).sum(-1) - self._earned

    def _settle(self) -> None:
        if not self._waiting:
            return
        world = self.world
        counts = torch.stack([self._counted(round_) for round_ in self._waiting])
        policy = torch.stack([round_.plan.policy for round_ in self._waiting])
        self._waiting.clear()
        law = occupancy(world.mdp.transition, world.mdp.start, policy)
        taken = law.unsqueeze(-1) * policy
        rewards = torch.einsum("bm,mhsa->bhsa", counts, world.tables).unsqueeze(1)
        self._earned = self._earned + (taken * rewards).sum((0, -3, -2, -1))
        self._tables = self._tables + counts.sum(0)

    def _counted(self, round_: Round) -> Tensor:
        which = self.world.which(round_.first, round_.plan.episodes)
        return torch.zeros_like(self._tables).scatter_add_(0, which, torch.ones_like(which, dtype=self._tables.dtype))


def gap(world: World, policy: Tensor) -> Tensor:
    """Return the optimal value less the policy's, for the mean rewards [R]."""
    mdp = world.mdp
    return optimal_value(mdp) - (backup(mdp.transition, mdp.reward, policy)[1][..., 0, :] * mdp.start).sum(-1)
