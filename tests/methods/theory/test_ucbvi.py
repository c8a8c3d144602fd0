from __future__ import annotations

import math

import pytest
import torch

from tests.fields.tabular.test_mdp import random_policy, some
from tests.reference import Case, cases
from vantage.core.errors import UserError
from vantage.fields.tabular.episodes import Episodes, Known, Plan, World, play, sample
from vantage.fields.tabular.mdp import backup
from vantage.fields.tabular.problems import riverswim
from vantage.fields.tabular.regret import gap
from vantage.methods import registry
from vantage.methods.theory.ucbvi import Counts, ucbvi


def counted(stationary: bool, episodes: int = 50) -> tuple[Counts, Known, World]:
    mdp = some()
    if stationary:
        mdp = type(mdp)(mdp.transition[:1].expand(3, -1, -1, -1), mdp.reward[:1].expand(3, -1, -1), mdp.start)
    world = World(mdp, mdp.reward.unsqueeze(0), noisy=False)
    known = Known(mdp.shape, 2, 3000)
    counts = Counts.empty(known, stationary)
    plan = Plan(random_policy(mdp, 2), episodes)
    counts.add(sample(world, plan, 0, torch.Generator().manual_seed(0), mdp.transition.cumsum(-1)))
    return counts, known, world


@pytest.mark.parametrize("stationary", [True, False])
def test_counts(stationary: bool) -> None:
    counts, _, world = counted(stationary)
    assert counts.visits.sum((1, 2, 3)).tolist() == [150.0, 150.0]
    torch.testing.assert_close(counts.moves.sum(-1), counts.visits)
    assert counts.at.sum(-1).tolist() == [[50.0] * 3] * 2
    assert counts.at[:, 0].tolist() == [[50.0, 0.0]] * 2
    seen = counts.visits > 0
    expected = world.mdp.reward[:1] if stationary else world.mdp.reward
    torch.testing.assert_close((counts.rewards / counts.visits)[seen], expected.expand_as(counts.visits)[seen])


def test_without_a_bonus_it_is_value_iteration_in_the_empirical_model() -> None:
    counts, known, _ = counted(False, 5000)
    upper = torch.full((2, *known.shape), 3.0, dtype=torch.float64)
    law, reward = counts.moves / counts.visits.unsqueeze(-1).clamp(min=1), counts.rewards / counts.visits.clamp(min=1)
    found = ucbvi(scale=0.0).plan(counts, upper, 1.0)
    stepwise = ucbvi(scale=0.0, stationary=False).plan(counts, upper, 1.0)
    expected, _ = backup(law, reward)
    seen = counts.visits > 0
    assert seen[:, 1:].all()
    torch.testing.assert_close(stepwise[:, 1:], expected[:, 1:])
    assert not torch.allclose(found[:, 1:], expected[:, 1:])


def test_bonuses_by_hand() -> None:
    counts, known, _ = counted(False)
    upper, log = torch.full((2, *known.shape), 3.0, dtype=torch.float64), 5.0
    scale = 1e-3
    n = counts.visits
    last = (counts.rewards / n)[:, 2]
    hoeffding = ucbvi(scale=scale, stationary=False).plan(counts, upper, log)
    torch.testing.assert_close(hoeffding[:, 2], last + scale * 7 * 3 * log / n[:, 2].sqrt())
    bernstein = ucbvi(bonus="bernstein", scale=scale, stationary=False).plan(counts, upper, log)
    torch.testing.assert_close(bernstein[:, 2], last + scale * 14 * 3 * log / (3 * n[:, 2]))
    value = bernstein[:, 2].amax(-1)
    p = (counts.moves / n.clamp(min=1).unsqueeze(-1))[0, 1, 0, 1]
    variance = float((p * (value[0] - (p * value[0]).sum()) ** 2).sum())
    error = float((p * (1e4 * 27 * 4 * 2 * log**2 / counts.at[0, 2]).clamp(max=9.0)).sum())
    visits = float(n[0, 1, 0, 1])
    b = math.sqrt(8 * log * variance / visits) + 14 * 3 * log / (3 * visits) + math.sqrt(8 * error / visits)
    expected = float(counts.rewards[0, 1, 0, 1]) / visits + float((p * value[0]).sum()) + scale * b
    assert float(bernstein[0, 1, 0, 1]) == pytest.approx(expected)


def test_the_bounds_are_upper_bounds_that_never_rise() -> None:
    mdp = riverswim(6, 3)
    world = World(mdp, mdp.reward.unsqueeze(0), noisy=False)
    best, _ = backup(mdp.transition, mdp.reward)
    known, generator = Known(mdp.shape, 4, 6 * 30), torch.Generator().manual_seed(0)
    counts, method = Counts.empty(known, True), ucbvi(scale=0.2)
    upper = torch.full((4, *mdp.shape), 6.0, dtype=torch.float64)
    for _ in range(30):
        counts.add(sample(world, Plan(known.uniform(), 20), 0, generator, mdp.transition.cumsum(-1)))
        after = method.plan(counts, upper, 8.0)
        assert (after <= upper).all()
        assert (after >= best - 1e-9).all()
        upper = after
    assert float(upper.mean()) < 6.0


@pytest.mark.parametrize("bonus", ["hoeffding", "bernstein", "simple"])
def test_it_swims_up_the_river(bonus: str) -> None:
    mdp = riverswim(8, 4)
    world = World(mdp, mdp.reward.unsqueeze(0), noisy=False)
    algorithm = registry.page("ucbvi").make({"scale": 0.001, "bonus": bonus})
    known = Known(mdp.shape, 4, 8 * 150)
    *_, last = play(algorithm, world, known, torch.Generator().manual_seed(0))
    assert float(gap(world, last.plan.policy).mean()) < 0.1 * float(gap(world, known.uniform()).mean())


def test_settings_out_of_range_are_refused() -> None:
    for settings, words in (
        ({"bonus": "hoefding"}, "hoeffding"),
        ({"scale": -1.0}, "scale"),
        ({"delta": 0.0}, "delta"),
    ):
        with pytest.raises(UserError, match=words):
            ucbvi(**settings)  # type: ignore[arg-type]


@cases("ucbvi")
def test_the_simple_bonus_is_that_of_rlberry(case: Case) -> None:
    """Counts and action values after its own episodes, with transitions that differ from step to step."""
    theirs = case.settings
    known = Known((theirs["horizon"], theirs["states"], theirs["actions"]), 1, 1)
    algorithm = registry.page("ucbvi").make(
        {"bonus": "simple", "scale": theirs["bonus_scale_factor"], "stationary": False}
    )
    state, action, last = (case.tensor(name, torch.int64).unsqueeze(0) for name in ("state", "action", "last"))
    counts = Counts.empty(known, False)
    counts.add(Episodes(state, action, case.tensor("reward").unsqueeze(0).to(counts.rewards.dtype), last))
    case.check("N", counts.visits[0])
    case.check("Q", algorithm.plan(counts, torch.zeros(1, *known.shape, dtype=counts.rewards.dtype), 1.0)[0])
