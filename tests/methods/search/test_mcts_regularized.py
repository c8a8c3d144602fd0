from __future__ import annotations

import math

import pytest
import torch

from vantage.core.errors import UserError
from vantage.fields.search.rules import PUCT, Greedy, Regularized
from vantage.fields.search.tree import Node
from vantage.functions.simplex import power_policy
from vantage.methods import registry
from vantage.methods.search.alphazero_rule import alphazero_rule
from vantage.methods.search.mcts_regularized import mcts_regularized

DOUBLE = torch.float64


def nodes(rows: int = 200, actions: int = 5, seed: int = 0, legal: bool = True) -> Node:
    generator = torch.Generator().manual_seed(seed)
    prior = torch.rand(rows, actions, generator=generator, dtype=DOUBLE) + 1e-3
    if legal:
        prior[:, -1] = 0.0
    visits = torch.randint(0, 6, (rows, actions), generator=generator).double() * (prior > 0)
    q = torch.rand(rows, actions, generator=generator, dtype=DOUBLE)
    return Node(prior / prior.sum(-1, keepdim=True), visits, q, prior > 0)


def divergence(prior: torch.Tensor, policy: torch.Tensor) -> torch.Tensor:
    """KL(prior, y), illegal actions left out."""
    return torch.where(prior > 0, prior * (prior / policy.clamp(min=1e-300)).log(), 0.0).sum(-1)


def test_worked_numbers_of_the_card() -> None:
    half = torch.tensor([0.5, 0.5], dtype=DOUBLE)
    policy, alpha = power_policy(torch.tensor([1.0, 0.0], dtype=DOUBLE), half, 1)
    assert float(alpha) == pytest.approx(1.70711, abs=1e-5)
    torch.testing.assert_close(policy, torch.tensor([0.70711, 0.29289], dtype=DOUBLE), atol=1e-5, rtol=0)
    # c = 1.25, N = 16, A = 2
    one = Node(half[None], torch.tensor([[10.0, 6.0]], dtype=DOUBLE), half[None], torch.ones(1, 2, dtype=torch.bool))
    assert float(Regularized(growth=None).multiplier(one)) == pytest.approx(0.27778, abs=1e-5)
    grown = 1.25 + math.log((16 + 19652 + 1) / 19652)
    assert float(Regularized().multiplier(one)) == pytest.approx(grown * 4 / 18)


def test_it_is_the_maximum_and_an_improvement() -> None:
    node = nodes()
    rule = Regularized()
    policy, lam = rule(node), rule.multiplier(node).squeeze(-1)
    some = node.total.squeeze(-1) > 0
    objective = (node.q * policy).sum(-1) - lam * divergence(node.prior, policy)
    generator = torch.Generator().manual_seed(1)
    for scale in (0.01, 0.3, 3.0):
        moved = (
            policy.clamp(min=1e-300).log() + scale * torch.randn(policy.shape, generator=generator, dtype=DOUBLE)
        ).softmax(-1)
        moved = moved * node.legal
        moved = moved / moved.sum(-1, keepdim=True)
        other = (node.q * moved).sum(-1) - lam * divergence(node.prior, moved)
        assert (objective >= other)[some].all()
    plain = (node.q * node.prior).sum(-1)
    assert (objective >= plain - 1e-12)[some].all()
    assert ((node.q * policy).sum(-1) > plain)[some].all()
    assert torch.equal(policy > 0, node.legal)
    torch.testing.assert_close(policy.sum(-1), torch.ones(200, dtype=DOUBLE))


def test_the_normaliser_lies_between_its_bounds() -> None:
    node = nodes(legal=False)
    lam = Regularized().multiplier(node)
    _, alpha = power_policy(node.q, lam * node.prior, 1)
    assert (alpha >= (node.q + lam * node.prior).amax(-1) - 1e-12).all()
    assert (alpha <= node.q.amax(-1) + lam.squeeze(-1) + 1e-12).all()
    constant = torch.full_like(node.q, 0.4)
    policy, alpha = power_policy(constant, lam * node.prior, 1)
    torch.testing.assert_close(policy, node.prior)
    torch.testing.assert_close(alpha, 0.4 + lam.squeeze(-1))
    shifted, moved = power_policy(node.q + 3.0, lam * node.prior, 1)
    torch.testing.assert_close(shifted, power_policy(node.q, lam * node.prior, 1)[0])
    torch.testing.assert_close(moved, power_policy(node.q, lam * node.prior, 1)[1] + 3.0)


def test_limits_of_the_multiplier() -> None:
    node = nodes(legal=False)
    sharp, _ = power_policy(node.q, 1e-9 * node.prior, 1)
    torch.testing.assert_close(
        sharp.gather(-1, node.q.argmax(-1, keepdim=True)), torch.ones(200, 1, dtype=DOUBLE), atol=1e-5, rtol=0
    )
    torch.testing.assert_close(power_policy(node.q, 1e9 * node.prior, 1)[0], node.prior)
    fresh = Node(node.prior, torch.zeros_like(node.visits), node.q, node.legal)
    torch.testing.assert_close(Regularized()(fresh), node.prior)


def test_a_higher_value_is_a_higher_probability() -> None:
    node = nodes(legal=False)
    raised = node.q.clone()
    raised[:, 2] += 0.1
    before, after = (Regularized()(Node(node.prior, node.visits, q, node.legal)) for q in (node.q, raised))
    some = node.total.squeeze(-1) > 0
    assert (after[:, 2] > before[:, 2])[some].all()


def test_the_rule_of_alphazero_is_a_step_towards_it() -> None:
    # d/dn_a of q . ph - lam KL(prior, ph) with ph = (1 + n) / (A + N) is (score_a - q . ph - lam) / (A + N), lam held fixed.
    node = nodes(legal=False)
    lam = Regularized(growth=None).multiplier(node).squeeze(-1)
    visits = node.visits.clone().requires_grad_()
    share = (1 + visits) / (5 + visits.sum(-1, keepdim=True))
    ((node.q * share).sum(-1) - lam * divergence(node.prior, share)).sum().backward()
    assert visits.grad is not None
    score = node.q + 1.25 * node.prior * node.total.sqrt() / (1 + node.visits)
    base = ((node.q * share).sum(-1) + lam).detach().unsqueeze(-1)
    some = node.total.squeeze(-1) > 0
    torch.testing.assert_close(visits.grad[some], ((score - base) / (5 + node.total))[some])
    assert torch.equal(PUCT(growth=None)(node).argmax(-1)[some], visits.grad.argmax(-1)[some])


def test_uses_are_independent() -> None:
    solved, plain = Regularized(), alphazero_rule()
    assert mcts_regularized(use="all") == plain.replace(tree=solved, act=solved, final=Greedy(solved), target=solved)
    assert mcts_regularized(use="act") == plain.replace(act=solved, final=Greedy(solved))
    assert mcts_regularized(use="search+learn") == plain.replace(tree=solved, target=solved)
    assert registry.page("mcts-regularized").make({"use": "learn", "c": 2}).target == Regularized(2.0)
    with pytest.raises(UserError, match=r"unknown use 'actt'.*act"):
        mcts_regularized(use="actt")
