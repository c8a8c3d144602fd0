from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from tests.fields.tabular.test_mdp import some
from vantage.core.errors import UserError
from vantage.fields.tabular.episodes import Known, World, play, sample
from vantage.fields.tabular.problems import stopping
from vantage.fields.tabular.regret import gap
from vantage.fields.tabular.softmax import reinforce
from vantage.methods import registry
from vantage.methods.control.dynamic_pg import dynamic_pg


def test_steps_are_trained_backwards_and_frozen() -> None:
    mdp = stopping(4)
    world = World(mdp, mdp.reward.unsqueeze(0))
    known = Known(mdp.shape, 2, 5 * 10 * 8 + 8 * 4 * 3)
    method = dynamic_pg(episodes=8)
    assert method.updates(known) == 6
    rounds = list(play(method, world, known, torch.Generator().manual_seed(0)))
    begun = [one.plan.step for one in rounds if one.played]
    assert begun == [3] * 6 + [2] * 6 + [1] * 6 + [0] * 6
    for before, after in pairwise(rounds):
        changed = {h for h in range(4) if not torch.equal(before.plan.policy[:, h], after.plan.policy[:, h])}
        assert changed <= {before.plan.step}
    assert all((one.plan.policy[:, : one.plan.step] == 0.5).all() for one in rounds)


def test_one_update_has_the_step_of_the_theory() -> None:
    mdp = some()
    world = World(mdp, mdp.reward.unsqueeze(0))
    learner = dynamic_pg(episodes=16, scale=3.0, bound=2.0)(Known(mdp.shape, 2, 16 * 6))
    plan = next(learner)
    assert plan.step == 2
    for h in (2, 1):
        seen = sample(world, plan, 0, torch.Generator().manual_seed(h), mdp.transition.cumsum(-1))
        after = learner.send(seen)
        step = 3.0 * reinforce(plan.policy, seen)[:, h] / (2 * (3 - h) * 2.0)
        torch.testing.assert_close(after.policy[:, h], step.softmax(-1))
        plan = after


def test_with_one_step_it_is_the_simultaneous_method() -> None:
    mdp = stopping(1)
    world = World(mdp, mdp.reward.unsqueeze(0))
    known, from_start = Known(mdp.shape, 2, 200), torch.full((3,), 1 / 3, dtype=torch.float64)
    world = World(type(mdp)(mdp.transition, mdp.reward, from_start), world.tables)
    ends = []
    for method in (registry.page("dynamic-pg").make({"scale": 2}), registry.page("softmax-pg").make({"scale": 5})):
        *_, last = play(method, world, known, torch.Generator().manual_seed(0))
        ends.append(last.plan.policy)
    torch.testing.assert_close(*ends)


def test_it_learns() -> None:
    mdp = stopping(4)
    world = World(mdp, mdp.reward.unsqueeze(0))
    algorithm = registry.page("dynamic-pg").make({"scale": 40})
    *_, last = play(algorithm, world, Known(mdp.shape, 8, 40_000), torch.Generator().manual_seed(0))
    start = float(gap(world, torch.full((1, *mdp.shape), 0.5, dtype=torch.float64)).mean())
    assert float(gap(world, last.plan.policy).mean()) < 0.2 * start


def test_bad_settings_and_budgets_are_refused() -> None:
    for settings in ({"episodes": 0}, {"scale": 0.0}, {"bound": -1.0}):
        with pytest.raises(UserError, match=next(iter(settings))):
            dynamic_pg(**settings)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="episodes=32 is too many"):
        next(dynamic_pg(episodes=32)(Known((4, 3, 2), 1, 319)))
