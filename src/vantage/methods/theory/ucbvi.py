"""UCB value iteration: planning in the empirical model, with a bonus for rarely visited states and actions.

Optimism in the face of uncertainty for an unknown tabular MDP: before every episode the values of the empirical model are
computed backwards with a bonus that makes them upper bounds with high probability, and the greedy policy is played.

    Q_h(s, a) = min(H, Q_h of before, rhat(s, a) + b(s, a) + sum_s' Phat(s' | s, a) V_{h+1}(s')),   H where n(s, a) = 0
    Hoeffding   b = 7 H L / sqrt(n)                                                   L = ln(5 S A T / delta), T steps in all
    Bernstein   b = sqrt(8 L Var_Phat(V_{h+1}) / n) + 14 H L / (3 n)
                    + sqrt(8 / n  sum_s' Phat(s') min(100^2 H^3 S^2 A L^2 / n'_{h+1}(s'), H^2))

    simple      b = min(scale / sqrt(n) + (H - h) / n, H - h)

arXiv 1703.05449, algorithms 1 to 4, n'_{h+1}(s') being visits of s' at step h + 1. The transition law is the same at every step
there; `stationary=False` counts each step separately. Rewards, which the paper takes as known, are estimated from the same
visits. `scale` multiplies the first two: the constants serve the proof; values of 0.001 to 0.01 learn within 1000 episodes of
RiverSwim, where at scale 0.1 nothing is learnt. The authors published no code. `bonus="simple"` is rlberry's, an algorithm without
a proof: bounds are made anew, without the minimum with those of before; V is cut at H instead of Q; what was never tried leads
anywhere alike with the bonus H - h. With stationary transitions rlberry refreshes a bonus only at the step of the last
visit, here at all steps; and what it recommends at the end is planned without a bonus.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor

from vantage.annotations import above, at_least, below
from vantage.core.component import component
from vantage.fields.tabular.episodes import Episodes, Known, Learner, Plan
from vantage.fields.tabular.mdp import greedy
from vantage.methods.claim import Claim
from vantage.methods.registry import Paper, method

PAPER = Paper(
    "Minimax Regret Bounds for Reinforcement Learning",
    "Mohammad Gheshlaghi Azar and Ian Osband and Rémi Munos",
    2017,
    arxiv="1703.05449",
    venue="International Conference on Machine Learning",
)

Bonus = Literal["hoeffding", "bernstein", "simple"]


@dataclass
class Counts:
    """Visits of (h, s, a) [R, H, S, A], of (h, s, a, s') [R, H, S, A, S] and the rewards there [R, H, S, A].

    The first dimension after R is 1 where steps are pooled.
    """

    visits: Tensor
    moves: Tensor
    rewards: Tensor
    at: Tensor
    """Visits of states at each step [R, H, S]."""

    @classmethod
    def empty(cls, known: Known, stationary: bool) -> Counts:
        """Return counts of 0."""
        steps, states, actions = known.shape
        kinds = 1 if stationary else steps

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(known.replicas, *shape, dtype=known.dtype, device=known.device)

        return cls(
            zeros(kinds, states, actions),
            zeros(kinds, states, actions, states),
            zeros(kinds, states, actions),
            zeros(steps, states),
        )

    def add(self, seen: Episodes) -> None:
        """Count whole episodes."""
        kinds, states, actions = self.visits.shape[1:]
        rows, _, steps = seen.state.shape
        after = torch.cat([seen.state[..., 1:], seen.last.unsqueeze(-1)], -1)
        h = torch.arange(steps, device=seen.state.device)
        cell = ((h % kinds) * states + seen.state) * actions + seen.action
        one = torch.ones_like(seen.reward).view(rows, -1)
        self.visits.view(rows, -1).scatter_add_(1, cell.view(rows, -1), one)
        self.moves.view(rows, -1).scatter_add_(1, (cell * states + after).view(rows, -1), one)
        self.rewards.view(rows, -1).scatter_add_(1, cell.view(rows, -1), seen.reward.view(rows, -1))
        self.at.view(rows, -1).scatter_add_(1, (h * states + seen.state).view(rows, -1), one)


@component(label="ucbvi")
class OptimisticIteration:
    """The algorithm.

    Attributes:
        bonus: hoeffding, bernstein or simple.
        scale: of the bonus.
        delta: probability with which an upper bound may fail.
        stationary: whether transitions are the same at every step.
    """

    bonus: Bonus = "hoeffding"
    scale: Annotated[float, at_least(0)] = 1.0
    delta: Annotated[float, above(0), below(1)] = 0.05
    stationary: bool = True

    def __call__(self, known: Known) -> Learner:
        """Learn from one episode at a time."""
        steps, states, actions = known.shape
        log = math.log(5.0 * states * actions * known.budget / self.delta)
        counts = Counts.empty(known, self.stationary)
        upper = torch.full_like(known.uniform(), float(steps))
        while True:
            counts.add((yield Plan(greedy(upper))))
            upper = self.plan(counts, upper, log)

    def plan(self, counts: Counts, upper: Tensor, log: float) -> Tensor:
        """Return upper bounds of Q [R, H, S, A]; but for the simple bonus none is above those of before.

        Args:
            counts: what was seen.
            upper: bounds of before [R, H, S, A].
            log: L.
        """
        if self.bonus == "simple":
            return self.simple(counts, upper)
        steps, states, actions = upper.shape[1:]
        n = counts.visits.clamp(min=1.0)
        law = counts.moves / n.unsqueeze(-1)
        reward = counts.rewards / n
        unseen = counts.visits == 0
        found: list[Tensor] = []
        value = torch.zeros_like(upper[:, 0, :, 0])
        for h in reversed(range(steps)):
            k = 0 if self.stationary else h
            ahead = (law[:, k] @ value[:, None, :, None]).squeeze(-1)
            if self.bonus == "hoeffding":
                wide = 7.0 * steps * log / n[:, k].sqrt()
            else:
                # After the last step there is neither a variance nor an error of the next bound.
                spread = ((law[:, k] @ value.square()[:, None, :, None]).squeeze(-1) - ahead.square()).clamp(min=0.0)
                wide = (8.0 * log * spread / n[:, k]).sqrt() + 14.0 * steps * log / (3.0 * n[:, k])
                if h + 1 < steps:
                    loose = 1e4 * steps**3 * states**2 * actions * log**2 / counts.at[:, h + 1].clamp(min=1.0)
                    error = (law[:, k] @ loose.clamp(max=steps**2)[:, None, :, None]).squeeze(-1)
                    wide = wide + (8.0 * error / n[:, k]).sqrt()
            q = (reward[:, k] + ahead + self.scale * wide).clamp(max=float(steps))
            q = torch.minimum(upper[:, h], q.masked_fill(unseen[:, k], float(steps)))
            found.append(q)
            value = q.amax(-1)
        return torch.stack(found[::-1], 1)

    def simple(self, counts: Counts, upper: Tensor) -> Tensor:
        """Return `plan` with the simple bonus, [R, H, S, A]; `upper` gives the shape alone."""
        steps, states = upper.shape[1:3]
        n = counts.visits.clamp(min=1.0)
        unseen = counts.visits == 0
        law = torch.where(unseen.unsqueeze(-1), 1.0 / states, counts.moves / n.unsqueeze(-1))
        found: list[Tensor] = []
        value = torch.zeros_like(upper[:, 0, :, 0])
        for h in reversed(range(steps)):
            k, left = (0 if self.stationary else h), float(steps - h)
            wide = (self.scale / n[:, k].sqrt() + left / n[:, k]).clamp(max=left).masked_fill(unseen[:, k], left)
            q = counts.rewards[:, k] / n[:, k] + wide + (law[:, k] @ value[:, None, :, None]).squeeze(-1)
            found.append(q)
            value = q.amax(-1).clamp(max=float(steps))
        return torch.stack(found[::-1], 1)


@method(papers=PAPER, source="rlberry-py/rlberry-scool@eae8e75 rlberry_scool/agents/ucbvi/ucbvi.py")
def ucbvi(
    bonus: Bonus = "hoeffding",
    scale: float = 1.0,
    delta: float = 0.05,
    stationary: bool = True,
) -> OptimisticIteration:
    """bonus: `hoeffding`, `bernstein` or `simple`; scale: of the bonus, 1 are the constants of the proof; delta: probability
    with which an upper bound may fail; stationary: transitions are the same at every step."""
    return OptimisticIteration(bonus, scale, delta, stationary)


claim = Claim(
    arena="riverswim-tabular",
    against="softmax-pg",
    direction="lower",
    settings={"scale": 0.001},
    against_settings={"episodes": 8, "scale": 100.0},
    note="The best of three scales of the bonus (0.001, 0.01, 0.1) and of two steps (10, 100); the paper proves a rate for"
    " scale 1.",
)
