"""Tabular prior and value, and self-play games that train them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vantage.fields.search.games import TableGame, openings
from vantage.fields.search.tree import Search, choose


@dataclass
class Table:
    """Evaluator with a table of prior and value of every state of a table game.

    Attributes:
        logits: [n, A].
        value: [n], for the player to move.
    """

    logits: Tensor
    value: Tensor

    @classmethod
    def random(cls, game: TableGame, spread: float, generator: torch.Generator) -> Table:
        """Return normal logits of standard deviation `spread`, and values 0."""
        logits = spread * torch.randn(game.successor.shape, generator=generator, dtype=torch.float64)
        return cls(logits.masked_fill(game.successor < 0, -torch.inf), torch.zeros(len(logits), dtype=torch.float64))

    def __call__(self, state: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return prior [B, A] and value [B] of states [B]."""
        return self.logits[state].softmax(-1).nan_to_num(0.0), self.value[state]

    def learn(self, seen: Seen, rate: float, value_rate: float) -> None:
        """Take one gradient step on each visited state, with its targets averaged.

        The policy loss is the cross-entropy of the (constant) target, whose gradient with respect to the logits is prior - target;
        the value loss is half the squared error to the outcome.
        """
        count = torch.zeros_like(self.value).index_add_(0, seen.state, torch.ones_like(seen.outcome))
        there = count.nonzero().squeeze(-1)
        times = count[there]
        target = torch.zeros_like(self.logits).index_add_(0, seen.state, seen.target)[there] / times.unsqueeze(-1)
        outcome = torch.zeros_like(self.value).index_add_(0, seen.state, seen.outcome)[there] / times
        self.logits[there] += rate * (target - self.logits[there].softmax(-1))
        self.value[there] += value_rate * (outcome - self.value[there])


@dataclass(frozen=True)
class Seen:
    """Decisions of games, in any order.

    Attributes:
        state: [K].
        target: distribution of the search [K, A].
        outcome: outcome for the player to move [K].
        simulations: total number of simulations.
    """

    state: Tensor
    target: Tensor
    outcome: Tensor
    simulations: int


def self_play(
    search: Search, game: TableGame, table: Table, games: int, simulations: int, generator: torch.Generator
) -> Seen:
    """Play games from random openings to their end, both players by the search's `act`."""
    state = openings(game, games, generator)
    live = torch.arange(games)
    moves: list[tuple[Tensor, Tensor, Tensor]] = []
    while len(live):
        found = search(game, state[live], table, simulations, generator, explore=True)
        moves.append((live, state[live], found.target))
        state[live] = game.step(state[live], choose(found.act, generator))
        live = live[~game.over(state[live])]
    value = game.outcome(state, generator)
    outcomes: list[Tensor] = []
    for who, _, _ in reversed(moves):
        # The value of the state after a move is the other player's.
        value = value.clone()
        value[who] *= game.sign
        outcomes.append(value[who])
    states, targets = torch.cat([at for _, at, _ in moves]), torch.cat([target for *_, target in moves])
    return Seen(states, targets, torch.cat(outcomes[::-1]), simulations * len(states))
