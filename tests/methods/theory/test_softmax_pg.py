from __future__ import annotations

import pytest
import torch

from tests.fields.tabular.test_mdp import some
from vantage.core.errors import UserError
from vantage.fields.tabular.episodes import Known, World, play, sample
from vantage.fields.tabular.regret import gap
from vantage.fields.tabular.softmax import reinforce
from vantage.methods import registry
from vantage.methods.theory.softmax_pg import softmax_pg


def test_one_update_has_the_step_of_the_theory() -> None:
    mdp = some()
    world = World(mdp, mdp.reward.unsqueeze(0))
    learner = softmax_pg(episodes=16, bound=2.0)(Known(mdp.shape, 2, 10_000))
    plan = next(learner)
    assert plan.episodes == 16
    assert (plan.policy == 0.5).all()
    seen = sample(world, plan, 0, torch.Generator().manual_seed(0), mdp.transition.cumsum(-1))
    after = learner.send(seen).policy
    step = reinforce(plan.policy, seen) / (5 * 9 * 2.0)
    torch.testing.assert_close(after, step.softmax(-1))
    assert not torch.equal(after, plan.policy)


def test_it_learns() -> None:
    mdp = some()
    world = World(mdp, mdp.reward.unsqueeze(0))
    algorithm = registry.page("softmax-pg").make({"scale": 100})
    *_, last = play(algorithm, world, Known(mdp.shape, 8, 3 * 32 * 200), torch.Generator().manual_seed(0))
    start = float(gap(world, torch.full((1, *mdp.shape), 0.5, dtype=torch.float64)).mean())
    assert float(gap(world, last.plan.policy).mean()) < 0.2 * start


def test_settings_out_of_range_are_refused() -> None:
    for settings in ({"episodes": 0}, {"scale": 0.0}, {"bound": -1.0}):
        with pytest.raises(UserError, match=next(iter(settings))):
            softmax_pg(**settings)  # type: ignore[arg-type]
