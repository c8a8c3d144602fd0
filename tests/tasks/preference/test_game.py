"""Finite preference games: the numbers of the card, the equilibrium's equations, and the rate."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from vantage.core import UserError
from vantage.tasks.preference import game


def log_uniform(arms: int) -> torch.Tensor:
    return torch.full((arms,), 1.0 / arms, dtype=torch.float64).log()


def test_two_arms_of_which_one_always_wins() -> None:
    matrix = torch.tensor([[0.5, 1.0], [0.0, 0.5]], dtype=torch.float64)
    ref = log_uniform(2)
    half, whole = game.mirror_prox(matrix, ref, ref, beta=1.0)
    for step in (half, whole):
        assert float(step[0] - step[1]) == pytest.approx(1 / 3)
        assert float(step[0].exp()) == pytest.approx(0.58257, abs=1e-5)
    _, second = game.mirror_prox(matrix, whole, ref, beta=1.0)
    assert float(second[0] - second[1]) == pytest.approx(4 / 9)
    star = game.equilibrium(matrix, ref, 1.0)
    assert float(star[0] - star[1]) == pytest.approx(0.5, abs=1e-6)
    assert float(star[0].exp()) == pytest.approx(0.62246, abs=1e-5)


def test_rock_paper_scissors_spirals_in() -> None:
    matrix = torch.tensor([[0.5, 0.0, 1.0], [1.0, 0.5, 0.0], [0.0, 1.0, 0.5]], dtype=torch.float64)
    ref = log_uniform(3)
    half, whole = game.mirror_prox(matrix, ref, ref, 0.05)
    torch.testing.assert_close(whole, ref)
    start = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64).log()
    half, whole = game.mirror_prox(matrix, start, ref, 0.05)
    assert (half - whole).abs().max() > 1e-2
    distances = []
    policy = start
    for _ in range(30):
        distances.append(float(game.divergence(ref, policy)))
        _, policy = game.mirror_prox(matrix, policy, ref, 0.05)
    assert all(later < earlier for earlier, later in pairwise(distances))


@pytest.mark.parametrize("beta", [0.05, 0.5])
def test_equilibrium_and_the_linear_rate(beta: float) -> None:
    matrix = game.random_game(100, 4, seed=3, scale=2.0)
    torch.testing.assert_close(matrix + matrix.transpose(-1, -2), torch.ones_like(matrix))
    ref = log_uniform(100).expand(4, -1)
    star = game.equilibrium(matrix, ref, beta)
    fixed = (game.win_rate(matrix, star) / beta + ref).log_softmax(-1)
    torch.testing.assert_close(star, fixed, atol=1e-8, rtol=0)
    value = (star.exp() * game.win_rate(matrix, star)).sum(-1)
    torch.testing.assert_close(value, torch.full_like(value, 0.5))
    assert game.exploitability(matrix, star, ref, beta).abs().max() < 1e-12
    policy, start = ref, game.divergence(star, ref)
    for k in range(1, 40):
        _, policy = game.mirror_prox(matrix, policy, ref, beta)
        assert (game.divergence(star, policy) <= (1 + 2 * beta) ** -k * start + 1e-11).all()


def test_limits_of_the_weights() -> None:
    matrix = game.random_game(5, 1, 0)[0]
    ref = torch.randn(5, dtype=torch.float64).log_softmax(-1)
    start = torch.randn(5, dtype=torch.float64).log_softmax(-1)
    win = game.win_rate(matrix, start)
    torch.testing.assert_close(game.respond(win, ref, start, 1e12, 0.5), ref)
    torch.testing.assert_close(game.respond(win, ref, start, 0.1, 1e12), start)
    with pytest.raises(UserError, match="must not both be 0"):
        game.respond(win, ref, start, 0.0, 0.0)


def test_exploitability_is_what_the_best_response_gains() -> None:
    matrix = game.random_game(6, 1, 1)[0]
    policy = torch.randn(6, generator=torch.Generator().manual_seed(0), dtype=torch.float64).log_softmax(-1)
    ref, beta = log_uniform(6), 0.2
    best = game.respond(game.win_rate(matrix, policy), ref, ref, beta, 0.0)
    gained = (
        (best.exp() * game.win_rate(matrix, policy)).sum()
        - beta * game.divergence(best, ref)
        + beta * game.divergence(policy, ref)
        - 0.5
    )
    assert float(game.exploitability(matrix, policy, ref, beta)) == pytest.approx(float(gained))
    plain = game.exploitability(matrix, policy, ref, 0.0)
    assert float(plain) == pytest.approx(float(game.win_rate(matrix, policy).max()) - 0.5)
    assert math.isfinite(float(plain))
