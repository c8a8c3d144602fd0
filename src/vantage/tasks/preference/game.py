"""Exact solutions of finite preference games: best responses, mirror prox, the equilibrium and exploitability.

A game is a matrix P [..., A, A], P[i, j] the probability that arm i is preferred to arm j, with P + P^T = 1; policies are
log-probabilities [..., A]. The regularised game (arXiv 2505.19731, section 2) is

    max_pi min_pi'  P(pi > pi') - beta KL(pi || ref) + beta KL(pi' || ref)

whose unique equilibrium pi* satisfies log pi* = P(. > pi*) / beta + log ref + const. Leading dimensions are a batch of games.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vantage.core.errors import UserError


def win_rate(matrix: Tensor, opponent: Tensor) -> Tensor:
    """Return P(y > opponent) [..., A] of every arm against a policy (log-probabilities [..., A])."""
    return (matrix @ opponent.exp().unsqueeze(-1)).squeeze(-1)


def respond(win: Tensor, reference: Tensor, anchor: Tensor, beta: float, c: float) -> Tensor:
    """Return argmax_pi <pi, win> - beta KL(pi || reference) - c KL(pi || anchor) as log-probabilities [..., A]."""
    if not beta + c > 0:
        raise UserError(f"respond: beta={beta} and c={c} must not both be 0")
    return ((win + beta * reference + c * anchor) / (beta + c)).log_softmax(-1)


def mirror_prox(
    matrix: Tensor, policy: Tensor, reference: Tensor, beta: float, c: float = 0.5
) -> tuple[Tensor, Tensor]:
    """Return (half step, full step) of Nash-MP from a policy; both are proximal steps from it, log-probabilities [..., A]."""
    half = respond(win_rate(matrix, policy), reference, policy, beta, c)
    return half, respond(win_rate(matrix, half), reference, policy, beta, c)


def equilibrium(matrix: Tensor, reference: Tensor, beta: float, tolerance: float = 1e-9, most: int = 20_000) -> Tensor:
    """Return the regularised game's equilibrium as float64 log-probabilities [..., A], by mirror prox from the reference.

    Raises:
        UserError: after `most` steps some log-probability differs by more than `tolerance` from its fixed-point equation.
    """
    matrix, reference = matrix.double(), reference.double()
    policy = reference
    for _ in range(most):
        _, policy = mirror_prox(matrix, policy, reference, beta)
        own = respond(win_rate(matrix, policy), reference, reference, beta, 0.0)
        if float((own - policy).abs().max()) < tolerance:
            return policy
    raise UserError(f"equilibrium: not found in {most} steps at beta={beta}: give a larger beta or tolerance")


def exploitability(matrix: Tensor, policy: Tensor, reference: Tensor, beta: float) -> Tensor:
    """Return the gain [...] of the best response against a policy in the regularised game; 0 only at the equilibrium.

    max_pi' P(pi' > pi) - beta KL(pi' || ref) + beta KL(pi || ref) - P(pi > pi); at beta 0 the best arm's win rate less 1/2.
    """
    win = win_rate(matrix, policy)
    # 1/2 up to the rounding of the matrix.
    even = (policy.exp() * win).sum(-1)
    if beta == 0:
        return win.amax(-1) - even
    best = beta * (win / beta + reference).logsumexp(-1)
    return best + beta * divergence(policy, reference) - even


def divergence(policy: Tensor, reference: Tensor) -> Tensor:
    """Return KL(policy || reference) in nats [...]."""
    return (policy.exp() * (policy - reference)).sum(-1)


def random_game(arms: int, games: int, seed: int, scale: float = 1.0) -> Tensor:
    """Return intransitive games [games, arms, arms], float64: sigmoid of `scale` times a random antisymmetric matrix."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(games, arms, arms, generator=generator, dtype=torch.float64)
    return torch.sigmoid(scale * (noise - noise.transpose(-1, -2)) / 2**0.5)
