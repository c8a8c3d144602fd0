"""PDPPO: the card's numbers, the authors' update, the split of the reward and its limits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import vantage
from tests.harness import assert_resumes, context, reader
from tests.reference import Case, cases
from vantage.core import Evaluation, Trajectories
from vantage.core.errors import UserError
from vantage.methods import registry
from vantage.methods.control.pdppo import POST, ChoiceEntropy, ClipChoices, DualCritic, LargerAdvantage, logp_of_choices
from vantage.objectives.surrogates import Clip
from vantage.policies.control import ControlPolicy
from vantage.policies.distributions import Categorical, MultiCategorical
from vantage.policies.networks import MLP
from vantage.policies.spaces import Actions, Observations
from vantage.regularizers.penalties import EntropyBonus
from vantage.tasks.registry import make_task


def batch_of(rest: list[float], fixed: list[float], value: float, value_post: float) -> Trajectories:
    no = torch.zeros(1, len(rest), dtype=torch.bool)
    end = no.clone()
    end[0, -1] = True
    columns = {"reward": torch.tensor([rest]) + torch.tensor([fixed]), "post_reward": torch.tensor([fixed])}
    values = {"value": torch.full((1, len(rest)), value), "value_post": torch.full((1, len(rest)), value_post)}
    return Trajectories({**columns, **values, "terminated": end, "truncated": no, "mask": ~no})


def test_returns_and_advantages_of_the_card() -> None:
    batch = batch_of([1.0, 0.0, 2.0], [-1.0, 0.0, -1.0], 1.2, -1.5)
    found = LargerAdvantage(0.5)(batch, context())
    assert found.returns[0].tolist() == pytest.approx([1.5, 1.0, 2.0])
    assert found["returns_post"][0].tolist() == pytest.approx([-1.25, -0.5, -1.0])
    assert found.advantage[0].tolist() == pytest.approx([0.3, 1.0, 0.8])
    whole = LargerAdvantage(0.5, split=False)(batch, context())
    assert whole.returns[0].tolist() == pytest.approx([0.25, 0.5, 1.0])
    assert whole.advantage[0].tolist() == pytest.approx([-0.95, -0.7, -0.2])


def test_the_second_critic_can_only_raise_an_advantage_and_idle_it_is_monte_carlo_ppo() -> None:
    torch.manual_seed(0)
    rest = torch.randn(20).tolist()
    fixed = torch.randn(20).tolist()
    either = LargerAdvantage(0.9)(batch_of(rest, fixed, 0.1, 0.2), context())
    assert bool((either.advantage >= either.returns - either.value).all())
    assert bool((either.advantage >= either["returns_post"] - either["value_post"]).all())
    idle = LargerAdvantage(0.9)(batch_of(rest, [0.0] * 20, 0.1, 1e9), context())
    plain = LargerAdvantage(0.9, split=False)(batch_of(rest, [0.0] * 20, 0.1, 0.0), context())
    torch.testing.assert_close(idle.advantage, plain.advantage)


def test_returns_stop_at_every_end() -> None:
    torch.manual_seed(0)
    reward, ends = torch.randn(4, 9), torch.rand(4, 9) < 0.3
    no = torch.zeros(4, 9, dtype=torch.bool)
    columns = {"reward": reward, "post_reward": reward / 3, "value": torch.zeros(4, 9), "mask": ~no}
    columns["value_post"] = torch.zeros(4, 9)
    over = LargerAdvantage(0.9)(Trajectories({**columns, "terminated": ends, "truncated": no}), context())
    cut = LargerAdvantage(0.9)(Trajectories({**columns, "terminated": no, "truncated": ends}), context())
    torch.testing.assert_close(over.returns, cut.returns)
    torch.testing.assert_close(over["returns_post"], over.returns / 2)


def loaded(case: Case, pairs: list[str], module: MLP) -> None:
    """Copy their weights and biases into a network."""
    values = [torch.tensor(value) for name in pairs for value in case.inputs[name]]
    for parameter, value in zip(module.pairs, values, strict=True):
        parameter.data.copy_(value)


@cases("pdppo")
def test_the_update_is_the_authors(case: Case) -> None:
    """All of one update: their networks, their buffer, K epochs; their actor's hidden layers are in no optimiser."""
    epochs = case.settings["K_epochs"]
    method = registry.page("pdppo").build({"epochs": epochs, "train_hidden": False, "batches": 1})
    actions = Actions("multidiscrete", (2,), (3, 3), (0, 0))
    policy: Any = ControlPolicy(Observations("vector", (2,)), actions, hidden=[3, 3])
    policy.actor = MLP([2, 3, 3, 6], "relu", 1.0, torch.Generator())
    where = context(policy=policy, method=method, step=0, total_steps=1, now=lambda value: value)
    values: DualCritic = method.values  # type: ignore[assignment]
    values.prepare(where)
    method.update.prepare(where)
    loaded(case, ["fc1", "fc2", "actor"], policy.actor)
    loaded(case, ["critic"], policy.critic)
    loaded(case, ["critic_post"], policy.heads[POST])

    def row(name: str) -> torch.Tensor:
        return case.tensor(name, torch.float32).unsqueeze(0)

    done = case.tensor("done").unsqueeze(0)
    columns = {name: row(name) for name in ("reward", "post_reward", "value", "value_post")}
    columns |= {"observation": row("state"), "post_observation": row("post_state"), "action": row("action").long()}
    columns |= {"choice_logp_old": row("logp_old"), "terminated": done, "truncated": torch.zeros_like(done)}
    batch = Trajectories({**columns, "mask": torch.ones_like(done)})
    # Where the buffer ends within an episode, the discounted sums end there.
    batch = method.advantage(batch, where)
    case.check("advantage", batch.advantage[0])
    case.check("returns", batch.returns[0])
    case.check("returns_post", batch["returns_post"][0])

    logits = policy.actor(batch.observation).detach().requires_grad_()
    seen = policy.head(logits)
    evaluation = Evaluation(distribution=seen, entropy=seen.entropy())
    (term,) = method.regularizers
    (method.objective(evaluation, batch, where) + term(evaluation, batch, where)).mean().backward()
    assert logits.grad is not None
    case.check("logits_grad", logits.grad[0])

    method.update(batch, where)
    values.fit(batch, where)
    case.check("actor_weight", policy.actor.linears[-1].weight)
    case.check("actor_bias", policy.actor.linears[-1].bias)
    for name, network in (("critic", policy.critic), ("critic_post", policy.heads[POST])):
        for i, parameter in enumerate(network.pairs):
            case.check(f"{name}_{i}", parameter)
    hidden = [p for layer in policy.actor.linears[:-1] for p in (layer.weight, layer.bias)]
    for parameter, value in zip(hidden, [v for name in ("fc1", "fc2") for v in case.inputs[name]], strict=True):
        torch.testing.assert_close(parameter.data, torch.tensor(value))
    if epochs == 1:
        recorded = where.metrics.collect()
        assert recorded["error/value"] == pytest.approx(case.outputs["error"], rel=1e-5)
        assert recorded["error/value_post"] == pytest.approx(case.outputs["error_post"], rel=1e-5)


def tiny(critics: str = "dual", **settings: Any) -> tuple[Any, Trajectories, DualCritic]:
    """A policy, a random batch of machine states and the critics, prepared."""
    task = make_task("lot-sizing", options={"hidden": [8]})
    policy = task.make_policy(seed=0)
    critic = DualCritic(critics, **settings)
    critic.prepare(context(policy=policy))
    torch.manual_seed(0)
    mask = torch.ones(3, 5, dtype=torch.bool)
    columns = {"observation": torch.randn(3, 5, 5), "post_observation": torch.randn(3, 5, 5), "mask": mask}
    columns |= {"returns": torch.randn(3, 5), "returns_post": torch.randn(3, 5)}
    return policy, Trajectories(columns), critic


def test_one_network_for_both_states_is_fitted_to_the_sum() -> None:
    """Its gradient is that of (V(s) + V(x) - G - G^x)^2, and no second network is made."""
    policy, batch, critic = tiny("single", epochs=1)
    assert POST not in policy.heads
    value, post = critic.of(batch, policy)
    assert post is not None
    loss = (value + post - batch.returns - batch["returns_post"]).square().mean()
    slopes = torch.autograd.grad(loss, list(policy.critic.parameters()))
    critic.fit(batch, context(policy=policy))
    for parameter, slope in zip(policy.critic.parameters(), slopes, strict=True):
        torch.testing.assert_close(parameter.grad, slope)


def test_each_critic_learns_its_own_part_alone() -> None:
    policy, batch, critic = tiny(epochs=200, lr=1e-2)
    batch = batch.replace(returns=torch.ones(3, 5), returns_post=torch.full((3, 5), -2.0))
    critic.fit(batch, context(policy=policy))
    value, post = critic.of(batch, policy)
    assert post is not None
    torch.testing.assert_close(value, torch.ones(3, 5), rtol=0, atol=0.1)
    torch.testing.assert_close(post, torch.full((3, 5), -2.0), rtol=0, atol=0.1)


def test_decisions_that_lead_to_one_state_have_one_value() -> None:
    """On the lake: from the cells around cell 10 to cell 10, and V_x is a function of that cell alone."""
    task = make_task("lake", options={"hidden": [8]})
    policy = task.make_policy(seed=0)
    critic = DualCritic("dual")
    critic.prepare(context(policy=policy))
    cell, move = torch.tensor([[6, 9, 14, 6]]), torch.tensor([[1, 2, 3, 2]])
    columns = {"observation": cell, "post_observation": task.ice.aimed[cell, move]}
    batch = Trajectories({**columns, "mask": torch.ones(1, 4, dtype=torch.bool)})
    _, found = critic.of(batch, policy)
    assert batch["post_observation"].tolist() == [[10, 10, 10, 7]]
    assert found is not None
    assert found[0, 0] == found[0, 1] == found[0, 2] != found[0, 3]


def test_the_setup_cost_is_what_the_decision_fixes() -> None:
    """In lot sizing r^x is minus the setup cost over the unit of rewards, whatever the demand."""
    task = make_task("lot-sizing:periods=20,machines=2")
    policy = task.make_policy(seed=0)
    engine = task.make_engine(policy, seed=0)
    where = context(policy=policy, method=reader(), device=torch.device("cpu"))
    batch = engine.advance(3, 20, where)
    before = torch.cat([torch.zeros(3, 1, 2), batch.action[:, :-1].float()], 1)
    switched = ((batch.action > 0) & (batch.action != before)).sum(-1)
    torch.testing.assert_close(batch["post_reward"], -0.5 * switched / task.system.cost_unit)
    assert bool((batch["post_reward"] >= batch.reward).all())
    assert int(switched.sum()) > 10


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
    assert vantage.method("pdppo").regularizers == (ChoiceEntropy(0.001),)


def test_a_resumed_run_is_the_run(tmp_path: Path) -> None:
    settings = {"rows": 2, "length": 10, "epochs": 3, "batches": 2}
    assert_resumes(tmp_path, vantage.method("pdppo", **settings), "lot-sizing:periods=10,machines=2")


@pytest.mark.parametrize("critics", ["dual", "single", "pre"])
def test_it_runs_and_fits_its_critics(critics: str) -> None:
    settings = {"rows": 4, "length": 20, "epochs": 30, "critics": critics, "critic_lr": 1e-2}
    task = vantage.task("lot-sizing:periods=20,machines=2")
    policy = task.make_policy(seed=0)
    run = vantage.train("pdppo", task, steps=3 * 80, settings=settings, evaluate_samples=4, policy=policy)
    steps = [line for line in run.outcome.history if "loss/value" in line]
    assert [line["replay/batches"] for line in steps] == [1, 2, 3]
    assert ("error/value_post" in steps[-1]) == (critics != "pre")
    # G^x, minus discounted setup costs of at most 1/3 a period, is far easier to value than the rest.
    if critics == "dual":
        assert steps[-1]["error/value_post"] < 0.2 * steps[-1]["error/value"]


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
