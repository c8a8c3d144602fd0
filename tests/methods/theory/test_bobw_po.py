from __future__ import annotations

import math

import pytest
import torch

from tests.fields.tabular.test_mdp import paths, random_policy, some
from vantage.core.errors import UserError
from vantage.fields.tabular.episodes import Episodes, Known, World, play
from vantage.fields.tabular.mdp import backup, occupancy
from vantage.fields.tabular.problems import layered
from vantage.fields.tabular.regret import gap
from vantage.methods import registry
from vantage.methods.theory.bobw_po import BestOfBothWorlds, bobw_po, leader, loss_estimate, spread

DOUBLE = torch.float64


def doubles(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=DOUBLE)


def episode(visited: list[int], taken: list[int], reward: list[float]) -> Episodes:
    return Episodes(
        torch.tensor([[visited]]),
        torch.tensor([[taken]]),
        torch.tensor([[reward]], dtype=DOUBLE),
        torch.zeros(1, 1).long(),
    )


def test_tsallis_step_of_the_card() -> None:
    torch.testing.assert_close(leader(doubles(0, 0), doubles(1.0).squeeze(), "tsallis"), doubles(0.5, 0.5))
    found = leader(doubles(0, 1), doubles(1.0).squeeze(), "tsallis")
    torch.testing.assert_close(found, doubles(0.780048, 0.219952), atol=1e-6, rtol=0)
    # p = (Z - z)^-2 with z = -1.132242
    torch.testing.assert_close(found, (doubles(0, 1) + 1.132242).pow(-2), atol=1e-6, rtol=0)


@pytest.mark.parametrize("regularizer", ["tsallis", "shannon", "log-barrier"])
def test_the_leader_is_the_minimum(regularizer: str) -> None:
    generator = torch.Generator().manual_seed(0)
    cost = 6 * torch.rand(20, 4, generator=generator, dtype=DOUBLE)
    inverse = 0.2 + 3 * torch.rand(20, generator=generator, dtype=DOUBLE)
    policy = leader(cost, inverse, regularizer)
    terms = {"tsallis": lambda p: -2 * p.sqrt(), "shannon": lambda p: p * p.log(), "log-barrier": lambda p: -p.log()}
    where = policy.clone().requires_grad_()
    ((where * cost).sum(-1) + inverse * terms[regularizer](where).sum(-1)).sum().backward()
    assert where.grad is not None
    # On the simplex a minimum inside has the same derivative along every action.
    torch.testing.assert_close(where.grad, where.grad.mean(-1, keepdim=True).expand(20, 4), rtol=1e-7, atol=1e-7)
    # A constant added to all costs changes nothing; a dearer action is less likely.
    torch.testing.assert_close(leader(cost + 3.0, inverse, regularizer), policy)
    assert (policy > 0).all()
    assert (policy.gather(-1, cost.argsort(-1)).diff(dim=-1) < 0).all()


def test_the_estimate_is_unbiased_by_enumeration() -> None:
    mdp = some(2)
    policy = random_policy(mdp)
    law = occupancy(mdp.transition, mdp.start, policy)
    expected = torch.zeros(mdp.shape, dtype=DOUBLE)
    for chance, visited, taken, _ in paths(mdp, policy):
        if chance:
            reward = [float(mdp.reward[h, s, a]) for h, (s, a) in enumerate(zip(visited, taken))]
            expected += chance * loss_estimate(episode(visited, taken, reward), law[None], policy[None])[0]
    q, _ = backup(mdp.transition, 1.0 - mdp.reward, policy)
    reached = (law > 0).unsqueeze(-1).expand_as(q)
    torch.testing.assert_close(expected[reached], q[reached])
    assert (expected[~reached] == 0).all()


def test_the_bonus_vanishes_as_the_policy_settles() -> None:
    assert float(spread(doubles(1, 0, 0))) == 0.0
    for actions in (2, 5):
        bound = (1 - 1 / actions) * math.sqrt(actions)
        assert float(spread(torch.full((actions,), 1 / actions, dtype=DOUBLE))) == pytest.approx(bound)
        grid = torch.distributions.Dirichlet(torch.ones(actions, dtype=DOUBLE)).sample((1000,))
        assert float(spread(grid).max()) <= bound


def exchange(method: BestOfBothWorlds, known: Known, episodes: list[Episodes]) -> list[torch.Tensor]:
    learner = method(known)
    policies = [next(learner).policy]
    policies += [learner.send(one).policy for one in episodes]
    return policies


def test_one_state_and_one_step_is_the_tsallis_bandit() -> None:
    one = torch.ones(1, 1, 3, 1, dtype=DOUBLE)
    known = Known((1, 1, 3), 1, 100, one, torch.ones(1, dtype=DOUBLE))
    rounds = [(0, 0.0), (1, 1.0), (0, 0.0), (2, 0.0)]
    found = exchange(bobw_po(c2=0.0, c1=0.1, c0=1.0), known, [episode([0], [a], [r]) for a, r in rounds])
    policy, cost = torch.full((3,), 1 / 3, dtype=DOUBLE), torch.zeros(3, dtype=DOUBLE)
    for t, (action, reward) in enumerate(rounds):
        torch.testing.assert_close(found[t][0, 0, 0], policy)
        cost[action] += (1 - reward) / policy[action]
        policy = leader(cost, torch.tensor(1 + 0.1 * math.sqrt(t + 1), dtype=DOUBLE), "tsallis")
    torch.testing.assert_close(found[-1][0, 0, 0], policy)


def test_the_first_update_with_a_bonus_by_hand() -> None:
    mdp = layered(2, 2, 2)
    known = Known(mdp.shape, 1, 100, mdp.transition, mdp.start)
    found = exchange(bobw_po(c0=1.0, c1=0.5, c2=2.0), known, [episode([0, 1], [0, 1], [0.0, 1.0])])[1]
    inverse = 1 + 0.5 * 2 * math.sqrt(1 / 0.5)  # each state has probability 1/2 at each step
    b = 2.0 * (inverse - 1.0) * math.sqrt(0.5)
    cost = torch.zeros(2, 2, 2, dtype=DOUBLE)
    cost[0, 0, 0] = 1.0 / 0.25
    cost[0] -= b + 1.5 * b
    cost[1] -= b
    torch.testing.assert_close(found[0], leader(cost, torch.full((2, 2), inverse, dtype=DOUBLE), "tsallis"))


def test_an_unreachable_state_adds_nothing() -> None:
    chain = torch.zeros(2, 2, 2, 2, dtype=DOUBLE)
    chain[..., 0] = 1.0
    known = Known((2, 2, 2), 1, 100, chain, doubles(1, 0))
    found = exchange(bobw_po(), known, [episode([0, 0], [0, 1], [0.0, 1.0])] * 3)[-1]
    assert torch.isfinite(found).all()
    torch.testing.assert_close(found[0, :, 1], torch.full((2, 2), 0.5, dtype=DOUBLE))


@pytest.mark.parametrize(
    "settings", [{}, {"regularizer": "shannon", "c2": 0.0, "eta": 0.05}, {"regularizer": "log-barrier"}]
)
def test_it_learns(settings: dict[str, object]) -> None:
    mdp = layered(2, 2, 2, gap=0.6)
    world = World(mdp, mdp.reward.unsqueeze(0))
    algorithm = registry.page("bobw-po").make(settings)
    known = Known(mdp.shape, 8, 2 * 600, mdp.transition, mdp.start)
    *_, last = play(algorithm, world, known, torch.Generator().manual_seed(0))
    assert float(gap(world, known.uniform()).mean()) == pytest.approx(0.6)
    assert float(gap(world, last.plan.policy).mean()) < 0.25


def test_settings_out_of_range_are_refused() -> None:
    for settings, words in (
        ({"c0": 0.0}, "c0"),
        ({"eta": -1.0}, "eta"),
        ({"c2": -1.0}, "c2"),
        ({"regularizer": "tsalis"}, "tsallis"),
    ):
        with pytest.raises(UserError, match=words):
            bobw_po(**settings)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"options.known"):
        next(bobw_po()(Known((1, 1, 2), 1, 10)))
