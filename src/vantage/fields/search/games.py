"""Games for tree search, as tables small enough to be solved exactly.

A `Game` steps a batch of states. `TableGame` numbers its states, which covers every game or deterministic MDP that fits in
memory, and its exact values are a few gathers. Values are in [-1, 1] and those of the player to move; after a move they change
sign where `sign` is -1 (two players, zero sum), and keep it where it is 1 (one player).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from vantage.core.errors import UserError

LINES = ((0, 1, 2), (3, 4, 5), (6, 7, 8), (0, 3, 6), (1, 4, 7), (2, 5, 8), (0, 4, 8), (2, 4, 6))


class Game(Protocol):
    """Interface of a game, for states [B] or [B, ...]."""

    @property
    def actions(self) -> int:
        """Number of actions, A."""
        ...

    @property
    def length(self) -> int:
        """Largest number of moves of a game."""
        ...

    @property
    def sign(self) -> int:
        """-1 for two players, 1 for one."""
        ...

    def legal(self, state: Tensor) -> Tensor:
        """Return the legal actions of states, bool [B, A]; none where the game is over."""
        ...

    def step(self, state: Tensor, action: Tensor) -> Tensor:
        """Return the states after legal actions [B]."""
        ...

    def over(self, state: Tensor) -> Tensor:
        """Return whether the game is over, bool [B]."""
        ...

    def outcome(self, state: Tensor, generator: torch.Generator) -> Tensor:
        """Return the outcome for the player to move where the game is over [B], undefined elsewhere; it may be random."""
        ...


@dataclass(frozen=True)
class TableGame:
    """Game of n numbered states; state 0 is the initial one.

    Attributes:
        successor: state after each action [n, A], -1 where it is not legal.
        payoff: expected outcome for the player to move [n], where the game is over.
        length: largest number of moves of a game.
        sign: -1 for two players, 1 for one.
        noisy: outcomes are random, 1 or -1, with the payoff as mean.
    """

    successor: Tensor
    payoff: Tensor
    length: int
    sign: int = -1
    noisy: bool = False

    @property
    def actions(self) -> int:
        """A."""
        return self.successor.shape[1]

    def legal(self, state: Tensor) -> Tensor:
        """Return the legal actions of states."""
        return self.successor[state] >= 0

    def step(self, state: Tensor, action: Tensor) -> Tensor:
        """Return the states after actions."""
        return self.successor[state, action]

    def over(self, state: Tensor) -> Tensor:
        """Return whether the game is over."""
        return ~self.legal(state).any(-1)

    def outcome(self, state: Tensor, generator: torch.Generator) -> Tensor:
        """Return the outcome for the player to move."""
        mean = self.payoff[state]
        if not self.noisy:
            return mean
        won = torch.rand(mean.shape, generator=generator, dtype=mean.dtype, device=mean.device) < (1 + mean) / 2
        return torch.where(won, 1.0, -1.0).to(mean.dtype)

    @functools.cached_property
    def action_values(self) -> Tensor:
        """Exact value of each action under optimal play after it [n, A], -inf where it is not legal."""
        value = self.payoff
        for _ in range(self.length):
            q = self.ahead(value)
            value = torch.where(self.open, q.amax(-1), self.payoff)
        return self.ahead(value)

    @functools.cached_property
    def open(self) -> Tensor:
        """States in which the game is not over [n]."""
        return (self.successor >= 0).any(-1)

    def ahead(self, value: Tensor) -> Tensor:
        """Return the values of actions [n, A] from the values of states [n]; -inf where an action is not legal."""
        return (self.sign * value[self.successor.clamp(min=0)]).masked_fill(self.successor < 0, -torch.inf)

    def average(self, q: Tensor, policy: Tensor) -> Tensor:
        """Return the mean of action values [n, A] under a policy [n, A], the payoff where the game is over [n]."""
        mean = (policy * q.masked_fill(self.successor < 0, 0.0)).sum(-1)
        return torch.where(self.open, mean, self.payoff)

    def played(self, policy: Tensor, against: Tensor | None = None) -> Tensor:
        """Return exact values of states for the player to move [n] when that player follows a policy [n, A].

        Args:
            policy: policy of the player to move.
            against: policy of the other player [n, A]; the same one if None.
        """
        mine = theirs = self.payoff
        for _ in range(self.length):
            # After one player's move the other is to move: the value of a move is read from the other player's table.
            mine, theirs = (
                self.average(self.ahead(theirs), policy),
                self.average(self.ahead(mine), policy if against is None else against),
            )
        return mine


@functools.cache
def tictactoe() -> TableGame:
    """Return tic-tac-toe: 5478 states, of which 4520 are open. The loser is to move when a game is lost."""
    empty: tuple[int, ...] = (0,) * 9
    boards, numbers = [empty], {empty: 0}
    successor, payoff = [], []
    for board in boards:
        # A board holds 1 for stones of the player to move and -1 for the other's.
        lost = any(board[a] == board[b] == board[c] == -1 for a, b, c in LINES)
        row = [-1] * 9
        for cell in range(9):
            if not lost and board[cell] == 0:
                after = tuple(-stone for stone in (*board[:cell], 1, *board[cell + 1 :]))
                if after not in numbers:
                    numbers[after] = len(boards)
                    boards.append(after)
                row[cell] = numbers[after]
        successor.append(row)
        payoff.append(-1.0 if lost else 0.0)
    return TableGame(torch.tensor(successor), torch.tensor(payoff, dtype=torch.float64), 9)


def bandit_tree(trees: int, depth: int, actions: int, *, generator: torch.Generator, players: int = 1) -> TableGame:
    """Return complete trees with random leaf outcomes 1 or -1, all in one table.

    Every edge has a normal number of standard deviation 1/2, and a leaf's mean payoff is tanh of the sum on the path to it, so
    that payoffs of a subtree are correlated. The root of tree t is state t; a tree has `actions` ** depth leaves.
    """
    if min(trees, depth, actions) < 1 or players not in (1, 2):
        raise UserError(
            f"bandit_tree: trees={trees}, depth={depth}, actions={actions}, players={players}: at least 1, players 1 or 2"
        )
    sizes = [trees * actions**level for level in range(depth + 1)]
    inner = sum(sizes[:-1])
    successor = torch.full((inner + sizes[-1], actions), -1)
    successor[:inner] = trees + torch.arange(inner * actions).view(inner, actions)
    sums = torch.zeros(trees, dtype=torch.float64)
    for size in sizes[1:]:
        sums = sums.repeat_interleave(actions) + 0.5 * torch.randn(size, generator=generator, dtype=torch.float64)
    payoff = torch.cat([torch.zeros(inner, dtype=torch.float64), sums.tanh()])
    return TableGame(successor, payoff, depth, 1 if players == 1 else -1, noisy=True)


def openings(game: TableGame, count: int, generator: torch.Generator) -> Tensor:
    """Return states [count] after 0 to length - 1 random moves from the initial state in which the game is not over."""
    state = torch.zeros(count, dtype=torch.long)
    moves = torch.randint(game.length, (count,), generator=generator)
    for move in range(game.length - 1):
        legal = game.legal(state)
        draw = torch.rand(legal.shape, generator=generator).masked_fill(~legal, -1.0)
        following = game.step(state, draw.argmax(-1))
        state = torch.where((move < moves) & ~game.over(following), following, state)
    return state


def playout(game: Game, state: Tensor, generator: torch.Generator) -> Tensor:
    """Return outcomes of games continued at random, for the player to move in the given states [B], float64."""
    sign = torch.ones(len(state), dtype=torch.float64, device=state.device)
    for _ in range(game.length):
        legal = game.legal(state)
        live = legal.any(-1)
        draw = torch.rand(legal.shape, generator=generator, device=state.device)
        action = draw.masked_fill(~legal, -1.0).argmax(-1)
        following = game.step(state, action)
        state = torch.where(live.view(-1, *(1,) * (state.dim() - 1)), following, state)
        sign = torch.where(live, sign * game.sign, sign)
    return sign * game.outcome(state, generator).to(sign.dtype)
