from __future__ import annotations

import torch

from tests.fields.tabular.test_mdp import paths, random_policy, some
from vantage.fields.tabular.episodes import Episodes
from vantage.fields.tabular.mdp import MDP, backup, occupancy, value
from vantage.fields.tabular.softmax import exact_gradient, reinforce

DOUBLE = torch.float64


def test_exact_gradient_is_autograds() -> None:
    mdp = some(4)
    logits = random_policy(mdp, 3).log().requires_grad_()
    policy = logits.softmax(-1)
    value(mdp, policy).sum().backward()
    law = occupancy(mdp.transition, mdp.start, policy.detach())
    torch.testing.assert_close(logits.grad, exact_gradient(mdp, policy.detach(), law))
    torch.testing.assert_close(logits.grad.sum(-1), torch.zeros(3, 3, 2, dtype=DOUBLE), atol=1e-14, rtol=0)


def test_the_estimate_is_unbiased_by_enumeration() -> None:
    mdp = some(4)
    policy = random_policy(mdp)
    expected = torch.zeros(mdp.shape, dtype=DOUBLE)
    for chance, visited, taken, _ in paths(mdp, policy):
        reward = [float(mdp.reward[h, s, a]) for h, (s, a) in enumerate(zip(visited, taken))]
        seen = Episodes(
            torch.tensor([[visited]]),
            torch.tensor([[taken]]),
            torch.tensor([[reward]], dtype=DOUBLE),
            torch.zeros(1, 1).long(),
        )
        expected += chance * reinforce(policy[None], seen)[0]
    law = occupancy(mdp.transition, mdp.start, policy)
    torch.testing.assert_close(expected, exact_gradient(mdp, policy, law))


def test_a_step_in_the_middle_with_any_law() -> None:
    # With the later steps frozen, law_h . V_h has the gradient law_h pi A at step h, and does not know the steps before.
    mdp = some(4)
    policy, other = random_policy(mdp), random_policy(mdp, seed=9)
    anywhere = torch.full((3, 2), 0.5, dtype=DOUBLE)
    changed = policy.clone()
    changed[0] = other[0]
    torch.testing.assert_close(exact_gradient(mdp, policy, anywhere)[1:], exact_gradient(mdp, changed, anywhere)[1:])
    logits = policy.log().requires_grad_()
    _, v = backup(mdp.transition, mdp.reward, logits.softmax(-1))
    (grad,) = torch.autograd.grad((anywhere[1] * v[1]).sum(), logits)
    torch.testing.assert_close(grad[1], exact_gradient(mdp, policy, anywhere)[1])
    assert (grad[0] == 0).all()


def test_numbers_of_the_card() -> None:
    def mdp(*rewards: tuple[float, float]) -> MDP:
        table = torch.tensor(rewards, dtype=DOUBLE).unsqueeze(1)
        return MDP(torch.ones(len(rewards), 1, 2, 1, dtype=DOUBLE), table, torch.ones(1, dtype=DOUBLE))

    half = torch.full((1, 1, 2), 0.5, dtype=DOUBLE)
    gradient = torch.tensor([0.25, -0.25], dtype=DOUBLE)
    torch.testing.assert_close(exact_gradient(mdp((1, 0)), half, torch.ones(1, 1, dtype=DOUBLE))[0, 0], gradient)
    # Last reward (0, 1) frozen at its optimum, first reward (1, 0): Q_0 = (2, 1).
    policy = torch.tensor([[[0.5, 0.5]], [[0.0, 1.0]]], dtype=DOUBLE)
    found = exact_gradient(mdp((1, 0), (0, 1)), policy, torch.ones(2, 1, dtype=DOUBLE))
    torch.testing.assert_close(found[0, 0], gradient)
    assert (found[1] == 0).all()
    # What a rarely reached state gets: its law.
    chain = torch.tensor([0.99, 0.01], dtype=DOUBLE).expand(2, 2, 2, 2)
    table = torch.tensor([[[0, 0], [0, 0]], [[0, 0], [1, 0]]], dtype=DOUBLE)
    rare = MDP(chain, table, torch.tensor([1.0, 0.0], dtype=DOUBLE))
    uniform = torch.full((2, 2, 2), 0.5, dtype=DOUBLE)
    own = exact_gradient(rare, uniform, occupancy(rare.transition, rare.start, uniform))
    torch.testing.assert_close(own[1, 1], 0.01 * gradient)
    torch.testing.assert_close(
        exact_gradient(rare, uniform, torch.full((2, 2), 0.5, dtype=DOUBLE))[1, 1], 0.5 * gradient
    )


def test_the_bandit_is_sublinear() -> None:
    # Two arms (1, 0), exact gradient, step 1/2: D <- D + 2 eta p (1 - p), and (1 - p) 2 eta n -> 1.
    difference, eta = torch.zeros((), dtype=DOUBLE), 0.5
    mdp = MDP(
        torch.ones(1, 1, 2, 1, dtype=DOUBLE), torch.tensor([[[1.0, 0.0]]], dtype=DOUBLE), torch.ones(1, dtype=DOUBLE)
    )
    for _ in range(20):
        policy = torch.stack([difference, torch.zeros((), dtype=DOUBLE)]).softmax(-1).view(1, 1, 2)
        step = exact_gradient(mdp, policy, torch.ones(1, 1, dtype=DOUBLE))[0, 0]
        p = policy[0, 0, 0]
        torch.testing.assert_close(eta * (step[0] - step[1]), 2 * eta * p * (1 - p))
        difference = difference + eta * (step[0] - step[1])
    scalar = 0.0
    for _ in range(100_000):
        p_ = 1 / (1 + 2.718281828459045**-scalar)
        scalar += 2 * eta * p_ * (1 - p_)
    assert abs((1 - p_) * 2 * eta * 100_000 - 1.0002) < 1e-4
