"""Rules that select actions within the tree, and distributions at the root for acting and as targets of the prior."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from vantage.core import above, at_least, component
from vantage.fields.search.games import Game, playout
from vantage.fields.search.tree import Evaluator, Node, Rule
from vantage.functions.simplex import power_policy


def best(score: Tensor, legal: Tensor) -> Tensor:
    """Return the distribution that is uniform over the legal actions of the highest score [B, A]."""
    score = score.masked_fill(~legal, -torch.inf)
    top = (score == score.amax(-1, keepdim=True)) & legal
    return top.to(score.dtype) / top.sum(-1, keepdim=True).clamp(min=1)


def exploration(total: Tensor, c: float, growth: float | None) -> Tensor:
    """Return the constant that multiplies the prior: c, or c + log((N + growth + 1) / growth) for N visits [...]."""
    return torch.full_like(total, c) if growth is None else c + ((total + growth + 1.0) / growth).log()


@component
class UCB1:
    """Tree rule argmax q + c sqrt(2 log N / n), unvisited actions first; c = 1 is UCB1's for q in [0, 1].

    Attributes:
        c: at least 0.
        count_own: N counts the node's own evaluation too.
    """

    c: Annotated[float, at_least(0)] = 1.0
    count_own: bool = False

    def __call__(self, node: Node) -> Tensor:
        """Return the distribution [B, A], uniform over ties."""
        total = node.total + self.count_own
        width = (2.0 * total.clamp(min=1.0).log() / node.visits.clamp(min=1.0)).sqrt()
        return best((node.q + self.c * width).masked_fill(node.visits == 0, torch.inf), node.legal)


@component
class PUCT:
    """Tree rule argmax q + c prior sqrt(N) / (1 + n), with `exploration`'s c. At N = 0 it is the prior's argmax.

    Attributes:
        c, growth: arguments of `exploration`.
        count_own: N counts the node's own evaluation too.
    """

    c: Annotated[float, at_least(0)] = 1.25
    growth: Annotated[float, above(0)] | None = 19652.0
    count_own: bool = False

    def __call__(self, node: Node) -> Tensor:
        """Return the distribution [B, A], uniform over ties."""
        total = node.total + self.count_own
        c = exploration(total, self.c, self.growth)
        return best(node.q + c * node.prior * total.clamp(min=1.0).sqrt() / (1.0 + node.visits), node.legal)


@component
class Visits:
    """Distribution n^(1/temperature) / sum; at temperature 0 the most visited action, on ties that of the highest q."""

    temperature: Annotated[float, at_least(0)] = 1.0

    def __call__(self, node: Node) -> Tensor:
        """Return the distribution."""
        if self.temperature == 0:
            most = best(node.visits, node.legal) > 0
            return best(node.q.masked_fill(~most, -torch.inf), node.legal)
        share = (node.visits / node.visits.amax(-1, keepdim=True).clamp(min=1.0)).pow(1.0 / self.temperature)
        return share / share.sum(-1, keepdim=True)


@dataclass(frozen=True)
class Greedy:
    """Rule that takes the most probable actions of another rule."""

    rule: Rule

    def __call__(self, node: Node) -> Tensor:
        """Return the distribution [B, A], uniform over ties."""
        return best(self.rule(node), node.legal)


@component
class Regularized:
    """Exact maximiser over policies y of q . y - lam KL(prior, y): y_a = lam prior_a / (alpha - q_a), arXiv 2007.12509.

    lam = c sqrt(N) / (A + N) with A legal actions and `exploration`'s c; the prior itself at N = 0.

    Attributes:
        c, growth: arguments of `exploration`.
    """

    c: Annotated[float, at_least(0)] = 1.25
    growth: Annotated[float, above(0)] | None = 19652.0

    def multiplier(self, node: Node) -> Tensor:
        """Return lam [B, 1], of N = 1 where N = 0."""
        total = node.total.clamp(min=1.0)
        return exploration(node.total, self.c, self.growth) * total.sqrt() / (node.width + total)

    def __call__(self, node: Node) -> Tensor:
        """Return the distribution."""
        weight = self.multiplier(node) * node.prior
        # A node where the game is over has no action: any weight keeps the solver finite, and its result is not used.
        weight = torch.where(node.legal.any(-1, keepdim=True), weight, 1.0)
        return torch.where(node.total > 0, power_policy(node.q, weight, 1)[0], node.prior)


def uniform_playouts(game: Game) -> Evaluator:
    """Return an evaluator with a uniform prior and the outcome of one random game as value."""

    def evaluate(state: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return game.legal(state).to(torch.float64), playout(game, state, generator)

    return evaluate
