"""FPO: the card's identities, the advantage of its critic, and that it learns on the control road."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

import vantage
from tests.harness import assert_resumes, context
from tests.reference import Case, cases
from vantage.core import Evaluation, Trajectories
from vantage.core.errors import UserError
from vantage.methods import registry
from vantage.methods.control.fpo import ClipDraws, target_advantage
from vantage.objectives.surrogates import Clip
from vantage.policies.flow_control import LOSSES, Flow


def batch_of(losses: torch.Tensor, advantage: float) -> Trajectories:
    rows = len(losses)
    return Trajectories(
        {
            "mask": torch.ones(rows, 1, dtype=torch.bool),
            "advantage": torch.full((rows, 1), advantage, dtype=torch.float64),
            "logp_old": -losses.mean(-1),
            "losses_old": losses,
        }
    )


def test_a_drop_of_a_tenth_is_a_ratio_that_is_clipped() -> None:
    old = torch.full((1, 1, 4), 0.5, dtype=torch.float64)
    new = (old - 0.1).requires_grad_()
    loss = Clip(0.05)(Evaluation(logp=-new.mean(-1)), batch_of(old, 1.0), context())
    loss.sum().backward()
    assert math.exp(0.1) == pytest.approx(1.1052, abs=1e-4)
    assert float(loss.detach()) == pytest.approx(-1.05)
    assert new.grad is not None
    assert float(new.grad.abs().max()) == 0.0


def test_at_the_old_weights_it_is_advantage_weighted_flow_matching() -> None:
    old = torch.rand(3, 1, 8, dtype=torch.float64)
    new = old.clone().requires_grad_()
    for part in (Clip(0.05), ClipDraws(0.05)):
        evaluation = Evaluation(logp=-new.mean(-1), extras={LOSSES: new})
        loss = part(evaluation, batch_of(old, 2.0), context())
        (slope,) = torch.autograd.grad(loss.sum(), new)
        torch.testing.assert_close(slope, torch.full_like(slope, 2.0 / 8))
        assert loss.tolist() == [[-2.0]] * 3


def test_the_mean_of_the_draws_ratios_is_never_smaller_than_the_ratio_of_the_mean() -> None:
    old, new = torch.rand(100, 1, 8, dtype=torch.float64), torch.rand(100, 1, 8, dtype=torch.float64)
    evaluation, wide = Evaluation(logp=-new.mean(-1), extras={LOSSES: new}), 1e6
    joint = -Clip(wide)(evaluation, batch_of(old, 1.0), context())
    apart = -ClipDraws(wide)(evaluation, batch_of(old, 1.0), context())
    assert bool((apart >= joint - 1e-12).all())
    limited = ClipDraws(wide)(Evaluation(extras={LOSSES: old - 9.0}), batch_of(old, 1.0), context())
    assert limited[0].tolist() == pytest.approx([-math.exp(3.0)])


def test_without_advantage_nothing_is_learnt() -> None:
    old, new = torch.rand(4, 1, 2).double(), torch.rand(4, 1, 2).double().requires_grad_()
    Clip(0.05)(Evaluation(logp=-new.mean(-1)), batch_of(old, 0.0), context()).sum().backward()
    assert new.grad is not None
    assert float(new.grad.abs().max()) == 0.0


def test_advantages_against_the_loop_of_the_card() -> None:
    torch.manual_seed(0)
    rows, steps, gamma, lam = 5, 12, 0.9, 0.8
    value = torch.randn(rows, steps + 1, dtype=torch.float64)
    reward = torch.randn(rows, steps, dtype=torch.float64)
    over, cut = torch.rand(rows, steps) < 0.15, torch.rand(rows, steps) < 0.15
    cut &= ~over
    batch = Trajectories(
        {
            "reward": reward,
            "value": value[:, :-1],
            "next_value": value[:, 1:],
            "terminated": over,
            "truncated": cut,
            "mask": torch.ones(rows, steps, dtype=torch.bool),
        }
    )
    advantage, target = target_advantage(batch, gamma, lam)
    for n in range(rows):
        accumulated, following = 0.0, float(value[n, -1])
        for t in reversed(range(steps)):
            d, m = gamma * (not over[n, t]), float(not cut[n, t])
            v = float(value[n, t])
            delta = (float(reward[n, t]) + d * float(value[n, t + 1]) - v) * m
            accumulated = delta + d * lam * m * accumulated
            assert float(advantage[n, t]) == pytest.approx((float(reward[n, t]) + d * following - v) * m)
            following = v + accumulated
            assert float(target[n, t]) == pytest.approx(following)


@pytest.mark.parametrize("per_draw", [False, True])
def test_it_runs_on_the_control_road_and_the_first_ratio_is_one(per_draw: bool) -> None:
    run = vantage.train(
        "fpo", "two-goals", steps=2 * 4 * 20, evaluate_samples=4,
        settings={"rows": 4, "length": 20, "epochs": 1, "minibatches": 1, "draws": 2, "solver_steps": 3, "per_draw": per_draw},
    )  # fmt: skip
    assert run.policy.process.kind == "flow"
    assert run.policy.process.draws == 2
    steps = [line for line in run.outcome.history if "loss/policy" in line]
    assert all(abs(line["kl/old"]) < 1e-6 for line in steps)
    assert "eval/rarest" in run.outcome.history[-1]


def test_defaults_are_a_batch_of_the_continuous_control_code() -> None:
    method = vantage.method("fpo")
    assert (method.rollout.length, method.update.minibatches) == (30, 32)
    assert method.rollout.rows == 2048 * 480 // 30 == 32 * 1024


def test_on_pendulum_the_policy_moves_and_resumes(tmp_path: Path) -> None:
    settings = {"rows": 2, "length": 10, "epochs": 2, "minibatches": 2, "draws": 2, "solver_steps": 2}
    task = vantage.task("pendulum", options=dict(vantage.method("fpo", **settings).policy_options))
    policy = task.make_policy(seed=0)
    before = {name: p.detach().clone() for name, p in policy.named_parameters()}
    whole = vantage.train(
        "fpo", task, steps=80, settings=settings, policy=policy, evaluate_samples=1, out=tmp_path / "run"
    )
    moved = {name.split(".")[0] for name, p in policy.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name.split(".")[0] for name in before}
    assert_resumes(tmp_path / "resumed", vantage.method("fpo", **settings), "pendulum")
    judged = vantage.evaluate(tmp_path / "run", samples=1, seed=1)
    assert judged["return"] == pytest.approx(whole.metrics[-1]["eval/return"])
    config = (tmp_path / "run" / "model" / "config.json").read_text()
    assert '"flow"' in config


def test_another_policy_is_refused() -> None:
    task = vantage.task("pendulum")
    with pytest.raises(UserError, match="policy=flow"):
        vantage.train("fpo", task, steps=10, policy=task.make_policy(), evaluate_samples=0)
    with pytest.raises(UserError, match="continuous actions"):
        vantage.train("fpo", "cartpole", steps=10, evaluate_samples=0)
    assert vantage.method("fpo").policy_options["policy"] == "flow"


class Linear(torch.nn.Module):
    """A flow policy with a network of one layer and a linear value; it is `networks` of itself."""

    memoryless = True

    def __init__(self, case: Case, weights: str, process: Flow) -> None:
        super().__init__()
        self.weights, self.worth = torch.nn.Parameter(case.tensor(weights)), torch.nn.Parameter(case.tensor("V"))
        self.seen = case.tensor("U")
        self.process = process

    def actor(self, x: torch.Tensor, time: torch.Tensor, observation: torch.Tensor) -> torch.Tensor:
        return 0.25 * torch.tanh(observation @ self.seen + x @ self.weights)

    def evaluate(self, batch: Trajectories, want: frozenset[str]) -> Evaluation:
        found = self.process.evaluate(self, batch.observation, batch, want)
        found.value = batch.observation @ self.worth
        return found

    def values(self, batch: Trajectories) -> tuple[torch.Tensor, torch.Tensor]:
        value, last = batch.observation @ self.worth, batch["last_observation"] @ self.worth
        return value.detach(), torch.cat([value[:, 1:], last.unsqueeze(1)], 1).detach()


@cases("fpo")
def test_the_step_is_the_authors(case: Case) -> None:
    """From rewards and draws to both gradients, with an episode that ends and one that a time limit cuts."""
    theirs = case.settings
    names = {"clipping_epsilon": "eps", "value_loss_coeff": "value_coefficient", "discounting": "gamma"}
    names |= {"gae_lambda": "lam", "n_samples_per_action": "draws", "reward_scaling": "reward_scale"}
    settings = {names[name]: value for name, value in theirs.items() if name in names}
    target = "velocity" if theirs["output_mode"] == "u" else "noise"
    per_draw = not theirs["average_losses_before_exp"]
    method = registry.page("fpo").build({**settings, "per_draw": per_draw, "target": target})
    process = Flow(draws=settings["draws"], target=target)
    decision = torch.cat([case.tensor("eps").flatten(2), case.tensor("t"), case.tensor("action")], -1)
    columns = {name: case.tensor(name) for name in ("observation", "last_observation", "reward")}
    columns |= {name: case.tensor(name) for name in ("terminated", "truncated")}
    mask = torch.ones_like(columns["terminated"])
    batch = Trajectories(
        {**columns, "action": decision, "mask": mask, "advantage": torch.zeros_like(columns["reward"])}
    )
    old = Linear(case, "W_old", process).evaluate(batch, frozenset({LOSSES}))
    case.check("losses_old", old.extras[LOSSES])
    batch = batch.replace(logp_old=old.logp.detach(), losses_old=old.extras[LOSSES].detach())
    policy = Linear(case, "W", process)
    where = context(method=method, policy=policy)
    method.update.prepare(where)
    method.update.step(batch, where)
    assert policy.weights.grad is not None
    assert policy.worth.grad is not None
    case.check("W_grad", policy.weights.grad)
    case.check("V_grad", policy.worth.grad)
    recorded = where.metrics.collect()
    assert recorded["loss/policy"] + recorded["loss/value"] == pytest.approx(case.outputs["loss"], rel=1e-5)
