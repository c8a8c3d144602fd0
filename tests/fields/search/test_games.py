from __future__ import annotations

import pytest
import torch

from vantage.core.errors import UserError
from vantage.fields.search.games import TableGame, bandit_tree, openings, playout, tictactoe
from vantage.fields.search.rules import best


def test_tic_tac_toe_is_the_known_game() -> None:
    game = tictactoe()
    # Known counts: 5478 positions, 958 of them final; a draw with perfect play, whatever the first move.
    assert len(game.successor) == 5478
    assert int(game.open.sum()) == 4520
    assert (game.action_values[0] == 0).all()
    assert (game.legal(torch.tensor([0])).sum(), game.legal(torch.tensor([1])).sum()) == (9, 8)
    # 255168 games, 131184 won by the first, 77904 by the second and 46080 drawn.
    count = torch.zeros(5478, 3, dtype=torch.int64)
    count[~game.open, (game.payoff[~game.open] + 1).long()] = 1
    for _ in range(9):
        after = count[game.successor.clamp(min=0)].flip(-1) * (game.successor >= 0).unsqueeze(-1)
        count = torch.where(game.open.unsqueeze(-1), after.sum(1), count)
    assert count[0].tolist() == [77904, 46080, 131184]


def test_exact_values_by_plain_recursion() -> None:
    game = tictactoe()

    def solve(state: int) -> float:
        moves = [m for m in game.successor[state].tolist() if m >= 0]
        return max(-solve(m) for m in moves) if moves else float(game.payoff[state])

    exact = game.action_values.amax(-1)
    chosen = [s for s in range(0, 5478, 97) if bool(game.open[s]) and int(game.legal(torch.tensor([s])).sum()) <= 6]
    assert len(chosen) > 20
    assert [solve(s) for s in chosen] == exact[chosen].tolist()


def test_value_of_two_policies_against_each_other() -> None:
    game = tictactoe()
    legal = game.successor >= 0
    anything = legal / legal.sum(-1, keepdim=True).clamp(min=1)
    perfect = best(game.action_values, legal)
    # The three counts above, weighted by how likely each game is, are known: 0.585 and 0.288.
    assert float(game.played(anything)[0]) == pytest.approx(0.5849 - 0.2881, abs=1e-3)
    assert float(game.played(perfect, anything)[0]) > 0.95
    assert float(game.played(perfect)[0]) == 0.0
    assert float(game.played(anything, perfect)[0]) < -0.75
    found = playout(game, torch.zeros(20_000, dtype=torch.long), torch.Generator().manual_seed(0))
    assert float(found.mean()) == pytest.approx(float(game.played(anything)[0]), abs=0.02)


@pytest.mark.parametrize("players", [1, 2])
def test_bandit_trees_by_plain_recursion(players: int) -> None:
    game = bandit_tree(3, 3, 2, generator=torch.Generator().manual_seed(0), players=players)
    assert game.successor.shape == (3 * 15, 2)

    def solve(state: int) -> float:
        moves = [m for m in game.successor[state].tolist() if m >= 0]
        return max(game.sign * solve(m) for m in moves) if moves else float(game.payoff[state])

    assert [solve(s) for s in range(3)] == game.action_values[:3].amax(-1).tolist()
    reached = {s for root in range(3) for s in _below(game, root)}
    assert reached == set(range(45))
    draws = game.outcome(torch.full((20_000,), 44), torch.Generator().manual_seed(0))
    assert set(draws.unique().tolist()) == {-1.0, 1.0}
    assert float(draws.mean()) == pytest.approx(float(game.payoff[44]), abs=0.03)


def _below(game: TableGame, state: int) -> list[int]:
    return [state] + [s for m in game.successor[state].tolist() if m >= 0 for s in _below(game, m)]


def test_openings_are_open_and_of_every_length() -> None:
    game = tictactoe()
    found = openings(game, 2000, torch.Generator().manual_seed(0))
    assert not game.over(found).any()
    assert set(game.legal(found).sum(-1).tolist()) == set(range(1, 10))
    with pytest.raises(UserError, match="depth=0"):
        bandit_tree(1, 0, 2, generator=torch.Generator())
