from __future__ import annotations

import pytest
import torch

from tests.fields.tabular.test_mdp import random_policy, some
from vantage.core.errors import UserError
from vantage.fields.tabular.episodes import Known, Learner, Plan, World, play, sample
from vantage.fields.tabular.mdp import occupancy, optimal_value, value
from vantage.fields.tabular.problems import growing_phases, layered
from vantage.fields.tabular.regret import Regret, gap


def world(noisy: bool = True) -> World:
    mdp = some()
    return World(mdp, mdp.reward.unsqueeze(0), noisy=noisy)


def moves(of: World) -> torch.Tensor:
    return of.mdp.transition.cumsum(-1)


class Fixed:
    """A learner that never learns."""

    def __init__(self, policy: torch.Tensor, episodes: int = 1) -> None:
        self.policy, self.episodes = policy, episodes
        self.seen = 0

    def __call__(self, known: Known) -> Learner:
        while True:
            seen = yield Plan(self.policy, self.episodes)
            self.seen += seen.reward.shape[1]


def test_episodes_have_the_laws_of_the_mdp() -> None:
    where, count = world(), 40_000
    policy = random_policy(where.mdp, 2)
    seen = sample(where, Plan(policy, count), 0, torch.Generator().manual_seed(0), moves(where))
    law = occupancy(where.mdp.transition, where.mdp.start, policy)
    found = torch.nn.functional.one_hot(seen.state, 2).double().mean(1)
    torch.testing.assert_close(found, law, atol=0.01, rtol=0)
    torch.testing.assert_close(seen.reward.sum(-1).mean(-1), value(where.mdp, policy), atol=0.02, rtol=0)
    assert set(seen.reward.unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(seen.to_go[..., 0], seen.reward.sum(-1))
    assert seen.to_go.shape == (2, count, 3)


def test_what_has_no_probability_never_happens() -> None:
    where = world()
    policy = torch.zeros(1, 3, 2, 2, dtype=torch.float64)
    policy[..., 1] = 1.0
    begin = torch.tensor([0.0, 1.0], dtype=torch.float64)
    seen = sample(where, Plan(policy, 5000, 1, begin), 0, torch.Generator().manual_seed(0), moves(where))
    assert (seen.action == 1).all()
    assert (seen.state[..., 0] == 1).all()
    assert seen.state.shape == (1, 5000, 2)
    # Without noise a reward is its expectation.
    calm = sample(world(False), Plan(policy, 4, 1, begin), 0, torch.Generator().manual_seed(0), moves(where))
    torch.testing.assert_close(calm.reward[..., 0], where.mdp.reward[1, 1, 1].expand(1, 4))


def test_play_counts_environment_steps_and_ends_with_what_does_not_fit() -> None:
    where = world()
    learner = Fixed(random_policy(where.mdp, 2), episodes=4)
    known = Known(where.mdp.shape, 2, budget=40)
    rounds = list(play(learner, where, known, torch.Generator().manual_seed(0)))
    assert [(one.spent, one.first, one.played) for one in rounds] == [
        (0, 0, True), (12, 4, True), (24, 8, True), (36, 12, False),
    ]  # fmt: skip
    assert learner.seen == 12


def test_regret_is_that_of_the_values() -> None:
    where = world()
    policy = random_policy(where.mdp, 2)
    regret = Regret(where)
    for one in play(Fixed(policy, 2), where, Known(where.mdp.shape, 2, 60), torch.Generator().manual_seed(0)):
        if one.played:
            regret.add(one)
    assert regret.episodes == 20
    torch.testing.assert_close(regret(), 20 * (optimal_value(where.mdp) - value(where.mdp, policy)))
    torch.testing.assert_close(gap(where, policy), regret() / 20)


def test_regret_against_an_adversary_is_that_of_the_best_fixed_policy() -> None:
    low, high = (layered(level=level).reward for level in (0.2, 0.8))
    flipped = high.flip(-1)
    mdp = layered()
    where = World(mdp, torch.stack([low, flipped]), growing_phases(8, 2.0))
    policy = random_policy(mdp, 3)
    regret = Regret(where)
    for one in play(Fixed(policy, 2), where, Known(mdp.shape, 3, 24), torch.Generator().manual_seed(0)):
        if one.played:
            regret.add(one)
    total = (where.order.view(-1, 1, 1, 1) == 0).double() * low + (
        where.order.view(-1, 1, 1, 1) == 1
    ).double() * flipped
    summed = type(mdp)(mdp.transition, total.sum(0), mdp.start)
    torch.testing.assert_close(regret(), optimal_value(summed) - value(summed, policy))


def test_bad_plans_are_refused() -> None:
    where = world()
    known = Known(where.mdp.shape, 1, 30)
    generator = torch.Generator().manual_seed(0)
    with pytest.raises(UserError, match=r"must be \[R, 3, 2, 2\]"):
        list(play(Fixed(torch.ones(1, 3, 2, 3)), where, known, generator))
    with pytest.raises(UserError, match="would never be spent"):
        list(play(Fixed(random_policy(where.mdp, 1), episodes=0), where, known, generator))
    with pytest.raises(UserError, match="must give the distribution"):
        sample(where, Plan(random_policy(where.mdp, 1), 1, 2), 0, generator, moves(where))
    with pytest.raises(UserError, match=r"options.known"):
        known.model("some-method")
