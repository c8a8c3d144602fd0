"""PDPPO: the card's numbers, the gradient of the minimum, and its limits."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

import vantage
from tests.harness import assert_resumes, context
from vantage.core import Evaluation, Trajectories
from vantage.core.errors import UserError
from vantage.methods.control.pdppo import (
    POST,
    ChoiceEntropy,
    ClipChoices,
    DualCritic,
    StandardReturns,
    logp_of_choices,
)
from vantage.objectives.surrogates import Clip
from vantage.policies.distributions import Categorical, MultiCategorical
from vantage.regularizers.penalties import EntropyBonus
from vantage.tasks.registry import make_task


def batch_of(reward: list[float], value: float) -> Trajectories:
    steps = len(reward)
    no = torch.zeros(1, steps, dtype=torch.bool)
    end = no.clone()
    end[0, -1] = True
    filled = torch.full((1, steps), value)
    return Trajectories(
        {"reward": torch.tensor([reward]), "value": filled, "terminated": end, "truncated": no, "mask": ~no}
    )


def test_returns_and_advantages_of_the_card() -> None:
    found = StandardReturns(0.5)(batch_of([1.0, 0.0, 2.0], min(0.2, -0.3)), context())
    assert found.returns[0].tolist() == pytest.approx([0.0, -1.0, 1.0], abs=1e-6)
    assert found.advantage[0].tolist() == pytest.approx([0.3, -0.7, 1.3], abs=1e-6)


def test_returns_stop_at_every_end() -> None:
    torch.manual_seed(0)
    reward, ends = torch.randn(4, 9), torch.rand(4, 9) < 0.3
    no = torch.zeros(4, 9, dtype=torch.bool)
    columns = {"reward": reward, "value": torch.zeros(4, 9), "mask": ~no}
    over = StandardReturns(0.9)(Trajectories({**columns, "terminated": ends, "truncated": no}), context())
    cut = StandardReturns(0.9)(Trajectories({**columns, "terminated": no, "truncated": ends}), context())
    torch.testing.assert_close(over.returns, cut.returns)


def tiny(critics: str = "dual", **settings: Any) -> tuple[Any, Trajectories, DualCritic]:
    """A policy, a random batch of machine states and the critics, prepared."""
    task = make_task("lot-sizing", options={"hidden": [8]})
    policy = task.make_policy(seed=0)
    critic = DualCritic(critics, **settings)
    critic.prepare(context(policy=policy))
    torch.manual_seed(0)
    mask = torch.ones(3, 5, dtype=torch.bool)
    columns = {"observation": torch.randn(3, 5, 5), "post_observation": torch.randn(3, 5, 5), "mask": mask}
    return policy, Trajectories({**columns, "returns": torch.randn(3, 5)}), critic


def test_the_minimum_sends_gradient_to_the_smaller_critic_alone() -> None:
    policy, batch, critic = tiny()
    one, other = critic.baselines(batch, policy)
    values = [one.detach().requires_grad_(), other.detach().requires_grad_()]
    loss = 0.5 * (torch.minimum(*values) - batch.returns).square().mean()
    slopes = torch.autograd.grad(loss, values)
    smaller = values[0] < values[1]
    assert 0 < int(smaller.sum()) < 15
    assert float(slopes[1][smaller].abs().max()) == 0.0
    assert float(slopes[0][~smaller].abs().max()) == 0.0


def test_the_dual_baseline_never_lowers_an_advantage() -> None:
    policy, batch, critic = tiny()
    with torch.no_grad():
        one, other = critic.baselines(batch, policy)
    lower = torch.minimum(one, other)
    assert bool((batch.returns - lower >= batch.returns - one).all())
    assert torch.equal(lower[one <= other], one[one <= other])


def test_with_an_idle_split_and_shared_weights_it_is_one_critic() -> None:
    """f = identity and V_x = V: same values, and the fit takes the same steps as Monte-Carlo PPO's critic."""
    policy, batch, critic = tiny()
    batch = batch.replace(post_observation=batch.observation)
    policy.heads[POST].load_state_dict(policy.critic.state_dict())
    both = critic.baselines(batch, policy)
    torch.testing.assert_close(both[0], both[1])
    single = copy.deepcopy(policy)
    loss = 0.5 * (torch.minimum(*both) - batch.returns).square().mean()
    loss.backward()
    plain = 0.5 * (single.evaluate(batch, frozenset({"value"})).value - batch.returns).square().mean()
    plain.backward()
    assert float(loss.detach()) == pytest.approx(float(plain.detach()))
    for a, b, c in zip(
        policy.critic.parameters(), policy.heads[POST].parameters(), single.critic.parameters(), strict=True
    ):
        # An exact tie is split between the two.
        torch.testing.assert_close(a.grad + b.grad, c.grad)


def test_decisions_that_lead_to_one_state_have_one_value() -> None:
    """On the lake: from the cells around cell 10 to cell 10, and V_x is a function of that cell alone."""
    task = make_task("lake", options={"hidden": [8]})
    policy = task.make_policy(seed=0)
    critic = DualCritic("post")
    critic.prepare(context(policy=policy))
    cell, move = torch.tensor([[6, 9, 14, 6]]), torch.tensor([[1, 2, 3, 2]])
    batch = Trajectories(
        {
            "observation": cell,
            "post_observation": task.ice.aimed[cell, move],
            "mask": torch.ones(1, 4, dtype=torch.bool),
        }
    )
    (found,) = critic.baselines(batch, policy)
    assert batch["post_observation"].tolist() == [[10, 10, 10, 7]]
    assert found[0, 0] == found[0, 1] == found[0, 2] != found[0, 3]


def test_one_choice_is_ppos_surrogate_and_several_are_each_their_own() -> None:
    torch.manual_seed(0)
    logits, old = torch.randn(6, 1, 3).double(), torch.randn(6, 1, 3).double()
    action = torch.randint(3, (6, 1))
    advantage, mask = torch.randn(6, 1).double(), torch.ones(6, 1, dtype=torch.bool)
    now, before = Categorical(logits), Categorical(old)
    columns = {"action": action, "advantage": advantage, "mask": mask, "logp_old": before.log_prob(action)}
    batch = Trajectories({**columns, "choice_logp_old": logp_of_choices(before, action)})
    ours = ClipChoices(0.2)(Evaluation(distribution=now), batch, context())
    theirs = Clip(0.2)(Evaluation(logp=now.log_prob(action)), batch, context())
    torch.testing.assert_close(ours, theirs)
    two, was = MultiCategorical(torch.randn(6, 1, 5), (2, 3)), MultiCategorical(torch.randn(6, 1, 5), (2, 3))
    both = torch.stack([torch.randint(2, (6, 1)), torch.randint(3, (6, 1))], -1)
    torch.testing.assert_close(logp_of_choices(two, both).sum(-1), two.log_prob(both))
    batch = batch.replace(action=both, choice_logp_old=logp_of_choices(was, both))
    loss = ClipChoices(0.2)(Evaluation(distribution=two), batch, context())
    ratio = (logp_of_choices(two, both) - logp_of_choices(was, both)).exp()
    a = advantage.unsqueeze(-1)
    torch.testing.assert_close(loss, -torch.minimum(a * ratio, a * ratio.clamp(0.8, 1.2)).mean(-1))


def test_the_entropy_is_the_mean_over_choices_and_of_one_choice_the_usual_bonus() -> None:
    torch.manual_seed(0)
    batch = Trajectories({"mask": torch.ones(6, 1, dtype=torch.bool)})
    logits = torch.randn(6, 1, 9)
    three = MultiCategorical(logits, (3, 3, 3))
    each = [Categorical(part).entropy() for part in logits.split(3, -1)]
    where = context()
    term = ChoiceEntropy(0.5)(Evaluation(entropy=three.entropy(), distribution=three), batch, where)
    torch.testing.assert_close(term, -0.5 * torch.stack(each).mean(0))
    assert where.metrics.collect()["entropy"] == pytest.approx(float(torch.stack(each).mean()))
    for one in (MultiCategorical(logits, (9,)), Categorical(logits)):
        found = Evaluation(entropy=one.entropy(), distribution=one)
        assert torch.equal(ChoiceEntropy(0.3)(found, batch, where), EntropyBonus(0.3)(found, batch, where))
    assert vantage.method("pdppo").regularizers == (ChoiceEntropy(0.012),)


def test_a_resumed_run_is_the_run(tmp_path: Path) -> None:
    settings = {"rows": 2, "length": 10, "epochs": 3}
    assert_resumes(tmp_path, vantage.method("pdppo", **settings), "lot-sizing:periods=10,machines=2")


@pytest.mark.parametrize("critics", ["dual", "post", "pre"])
def test_it_runs_and_fits_its_critics(critics: str) -> None:
    settings = {"rows": 4, "length": 20, "epochs": 30, "critics": critics, "critic_lr": 1e-2}
    task = vantage.task("lot-sizing:periods=20,machines=2")
    policy = task.make_policy(seed=0)
    run = vantage.train("pdppo", task, steps=3 * 80, settings=settings, evaluate_samples=4, policy=policy)
    steps = [line for line in run.outcome.history if "loss/value" in line]
    assert len(steps) == 3
    assert all(line["loss/value"] < 0.6 for line in steps)
    named = {"dual": {"error/value", "error/value_post"}, "post": {"error/value_post"}, "pre": {"error/value"}}
    assert named[critics] <= set(steps[-1])


def test_it_says_what_it_needs() -> None:
    with pytest.raises(UserError, match="post-decision states"):
        vantage.train("pdppo", "cartpole", steps=64, settings={"rows": 2, "length": 8}, evaluate_samples=0)
    with pytest.raises(UserError, match="critics"):
        vantage.method("pdppo", critics="both")
    run = vantage.train(
        "pdppo",
        "cartpole",
        steps=32,
        settings={"rows": 2, "length": 8, "epochs": 2, "critics": "pre"},
        evaluate_samples=0,
    )
    assert run.outcome.step == 2


@pytest.mark.parametrize("shift", [90.0, -90.0])
def test_a_log_ratio_of_90_has_a_finite_loss_and_gradient(shift: float) -> None:
    mask = torch.tensor([[True], [True], [False]])
    logits = torch.zeros(3, 1, 2).requires_grad_()
    now, action = Categorical(logits), torch.zeros(3, 1, dtype=torch.int64)
    old = torch.where(mask, now.log_prob(action).detach() - shift, torch.nan)
    columns = {"action": action, "advantage": torch.tensor([[1.0], [-1.0], [1.0]]), "mask": mask}
    loss = ClipChoices(0.2)(
        Evaluation(distribution=now), Trajectories({**columns, "choice_logp_old": old.unsqueeze(-1)}), context()
    )
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert torch.isfinite(logits.grad).all()
    assert not logits.grad[2].any()


def test_the_defaults_compose_what_the_page_states() -> None:
    method = vantage.method("pdppo")
    values, update = method.values, method.update
    assert (method.rollout.rows, method.rollout.length, method.advantage.gamma, method.objective.eps) == (
        40,
        100,
        0.99,
        0.2,
    )
    assert (values.critics, values.epochs, values.lr, values.weight_decay, values.max_grad_norm) == (
        "dual",
        60,
        1e-3,
        1e-3,
        1.0,
    )
    assert (update.optimizer.lr, update.optimizer.weight_decay, update.epochs) == (5.5e-4, 1e-3, 60)
    assert (update.max_grad_norm, method.averaging) == (1.0, "token-mean")
    assert [term.coefficient for term in method.regularizers] == [0.012]
