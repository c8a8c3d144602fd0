"""DPPO: inner discount and clip widths of the card, the unrolled batch, its limit, and that it runs on the control road."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import vantage
from tests.harness import assert_resumes, context
from tests.reference import Case, cases
from vantage.core import Evaluation, Trajectories
from vantage.core.errors import UserError
from vantage.core.method import Method
from vantage.methods import registry
from vantage.methods.control.dppo import EtaBonus, InnerClip, InnerSteps
from vantage.objectives.surrogates import Clip
from vantage.policies.diffusion import ETA, INNER, Diffusion
from vantage.policies.generative import GenerativePolicy
from vantage.policies.spaces import Actions, Observations


def policy_of(steps: int, tuned: int) -> GenerativePolicy:
    done = Actions("continuous", (2,), low=(-1.0, -1.0), high=(1.0, 1.0))
    return GenerativePolicy(Observations("vector", (3,)), done, Diffusion(steps, tuned))


def test_widths_of_the_card() -> None:
    width = InnerClip(0.01, 0.001).width(torch.arange(10), 10)
    assert float(width[0]) == pytest.approx(0.001)
    assert float(width[9]) == pytest.approx(0.01)
    assert float(width[5]) == pytest.approx(0.003025, abs=1e-6)
    assert InnerClip(0.01, 0.001).width(torch.zeros(1), 1).tolist() == pytest.approx([0.01])


def test_inner_discount_of_the_card() -> None:
    policy = policy_of(20, 10)
    inner = torch.arange(10).view(1, 10)
    columns = {INNER: inner, "advantage": torch.ones(1, 10), "mask": torch.ones(1, 10, dtype=torch.bool)}
    batch = Trajectories({**columns, "logp_old": torch.zeros(1, 10)})
    where = context(policy=policy, step=0)
    loss = InnerClip()(Evaluation(logp=torch.zeros(1, 10)), batch, where)
    assert float(-loss[0, 0]) == pytest.approx(0.9135, abs=1e-4)
    assert float(-loss[0, 9]) == 1.0
    assert float(InnerClip(warmup=1)(Evaluation(logp=torch.zeros(1, 10)), batch, where).abs().max()) == 0.0


def test_decisions_become_their_learned_steps() -> None:
    policy = policy_of(5, 3)
    torch.manual_seed(0)
    seen = torch.randn(2, 4, 3)
    chain = policy.process.sample(policy.networks, seen.flatten(0, 1), torch.randn(8, 12)).unflatten(0, (2, 4))
    ones = torch.ones(2, 4, dtype=torch.bool)
    columns = {"observation": seen, "action": chain, "mask": ones, "advantage": torch.arange(8.0).view(2, 4)}
    batch = Trajectories({**columns, "length": torch.tensor([4, 4]), "logp_old": torch.zeros(2, 4)})
    vantage_context = vantage.core.context.Context(None, policy, None, None, torch.Generator())  # type: ignore[arg-type, attr-defined]
    unrolled = InnerSteps()(batch, vantage_context)
    assert unrolled.mask.shape == (2, 12)
    assert unrolled[INNER][0].tolist() == [0, 1, 2] * 4
    assert unrolled.advantage[1].tolist() == [4.0] * 3 + [5.0] * 3 + [6.0] * 3 + [7.0] * 3
    states = chain.unflatten(-1, (4, 2))
    torch.testing.assert_close(unrolled.action[1, 4], torch.cat([states[1, 1, 1], states[1, 1, 2]]))
    now = policy.evaluate(unrolled, frozenset({"logp"})).logp
    torch.testing.assert_close(unrolled.logp_old, now)
    whole = policy.evaluate(batch, frozenset({"logp"})).logp
    torch.testing.assert_close(now.unflatten(1, (4, 3)).sum(-1), whole)


def test_one_learned_step_without_inner_discount_is_ppo() -> None:
    """K = K' = 1: the loss is the clipped surrogate of one Gaussian, whatever gamma_den."""
    policy = policy_of(1, 1)
    torch.manual_seed(0)
    old, new, advantage = (torch.randn(6, 1, dtype=torch.float64) * 0.05 for _ in range(3))
    columns = {"logp_old": old, "advantage": advantage, "mask": torch.ones(6, 1, dtype=torch.bool)}
    batch = Trajectories({**columns, INNER: torch.zeros(6, 1, dtype=torch.long)})
    ours = InnerClip(0.02, 0.001, discount=0.5)(Evaluation(logp=new), batch, context(policy=policy, step=0))
    theirs = Clip(0.02)(Evaluation(logp=new), batch, context())
    torch.testing.assert_close(ours, theirs)


def test_it_runs_on_the_control_road_from_demonstrations() -> None:
    options = {"warm_start": 3, "hidden": [16], "normalize_observations": False}
    settings = {"rows": 2, "length": 6, "epochs": 1, "minibatches": 1, "denoising_steps": 4, "tuned": 2}
    run = vantage.train("dppo", "detour", steps=2 * 2 * 6, settings=settings, options=options, evaluate_samples=4)
    early, actor = run.policy.early.mlp.linears[0].weight, run.policy.actor.mlp.linears[0].weight
    assert not torch.equal(early, actor)
    steps = [line for line in run.outcome.history if "loss/policy" in line]
    assert len(steps) == 2
    assert all(abs(line["kl/old"]) < 1e-6 for line in steps)
    assert {"eval/share/strayed", "eval/rarest"} <= set(run.outcome.history[-1])


DDIM = {
    "rows": 2,
    "length": 8,
    "epochs": 2,
    "minibatches": 2,
    "denoising_steps": 8,
    "tuned": 2,
    "ddim_steps": 4,
}


def test_with_ddim_it_takes_fewer_steps_and_eta_learns() -> None:
    learnt = {**DDIM, "learn_eta": True, "eta": 0.9, "eta_coefficient": 0.1, "lr": 1e-2}
    run = vantage.train("dppo", "pendulum", steps=32, settings=learnt, evaluate_samples=0)
    process = run.policy.process
    assert (process.length, process.frozen_steps, process.noise_width(1)) == (4, 2, 5)
    steps = [line for line in run.outcome.history if "loss/policy" in line]
    assert len(steps) == 2
    assert float(run.policy.actor.own.detach()) != 0.0
    assert 0.1 < float(process.eta_of(run.policy.networks).detach()) < 2.0
    assert steps[0]["eta"] == pytest.approx(0.9, abs=0.05)
    fixed = vantage.train("dppo", "pendulum", steps=16, settings={**DDIM, "eta": 0.5}, evaluate_samples=0)
    assert fixed.policy.process.eta == 0.5
    assert not hasattr(fixed.policy.actor, "own")
    with pytest.raises(UserError, match="ddim_steps"):
        vantage.train("dppo", "pendulum", steps=16, settings={"learn_eta": True}, evaluate_samples=0)


def test_the_bonus_of_eta_is_its_coefficient() -> None:
    eta = torch.full((2, 3), 0.4, requires_grad=True)
    term = EtaBonus(0.5)(
        Evaluation(extras={ETA: eta}), Trajectories({"mask": torch.ones(2, 3, dtype=torch.bool)}), context(step=0)
    )
    assert term.flatten().tolist() == pytest.approx([-0.2] * 6)
    (slope,) = torch.autograd.grad(term.sum(), eta)
    assert torch.equal(slope, torch.full((2, 3), -0.5))


def test_warming_up_the_critic_leaves_actor_and_eta_as_they_are() -> None:
    learnt = {"learn_eta": True, "eta": 0.9, "eta_coefficient": 0.1, "lr": 1e-2, "critic_warmup": 2}
    task = vantage.task("pendulum", options=dict(vantage.method("dppo", **DDIM, **learnt).policy_options))
    for steps, moves in ((2, False), (3, True)):
        policy = task.make_policy(seed=0)
        before = {name: p.detach().clone() for name, p in policy.named_parameters()}
        vantage.train("dppo", task, steps=steps * 16, settings={**DDIM, **learnt}, policy=policy, evaluate_samples=0)
        moved = {name.split(".")[0] for name, p in policy.named_parameters() if not torch.equal(p, before[name])}
        assert "critic" in moved
        assert ("actor" in moved) == moves
        assert (float(policy.actor.own.detach()) != float(before["actor.own"])) == moves


def test_defaults_are_those_of_the_gym_experiments() -> None:
    objective = vantage.method("dppo").objective
    assert (objective.eps, objective.base) == (0.01, 0.01)
    assert objective.width(torch.arange(10), 10).tolist() == pytest.approx([0.01] * 10)


def test_a_resumed_run_is_the_run(tmp_path: Path) -> None:
    settings = {
        "rows": 2,
        "length": 8,
        "epochs": 2,
        "minibatches": 2,
        "denoising_steps": 4,
        "tuned": 2,
        "ddim_steps": 3,
    }
    assert_resumes(tmp_path, vantage.method("dppo", **settings, learn_eta=True, eta_coefficient=0.1), "pendulum")


def test_on_pendulum_a_run_is_kept_in_its_folder(tmp_path) -> None:  # type: ignore[no-untyped-def]
    settings = {"rows": 2, "length": 8, "epochs": 2, "minibatches": 2, "denoising_steps": 3, "tuned": 3}
    whole = vantage.train("dppo", "pendulum", steps=32, settings=settings, evaluate_samples=1, out=tmp_path / "run")
    judged = vantage.evaluate(tmp_path / "run", samples=1, seed=1)
    assert judged["return"] == pytest.approx(whole.metrics[-1]["eval/return"])


def test_another_policy_is_refused() -> None:
    task = vantage.task("pendulum")
    with pytest.raises(UserError, match="policy=diffusion"):
        vantage.train("dppo", task, steps=10, policy=task.make_policy(), evaluate_samples=0)
    with pytest.raises(UserError, match="no demonstrations"):
        vantage.task("pendulum:warm_start=3")


@pytest.mark.parametrize("shift", [90.0, -90.0])
def test_a_log_ratio_of_90_has_a_finite_loss_and_gradient(shift: float) -> None:
    logp = torch.full((4, 1), shift, requires_grad=True)
    mask = torch.ones(4, 1, dtype=torch.bool)
    columns = {"logp_old": torch.zeros(4, 1), "advantage": torch.tensor([[1.0], [-1.0]] * 2), "mask": mask}
    batch = Trajectories({**columns, INNER: torch.zeros(4, 1, dtype=torch.long)})
    loss = InnerClip(0.02, 0.001)(Evaluation(logp=logp), batch, context(policy=policy_of(1, 1), step=0))
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert torch.isfinite(logp.grad).all()


def built(case: Case) -> Method:
    names = {"ft_denoising_steps": "tuned", "clip_ploss_coef": "eps", "clip_ploss_coef_base": "eps_base"}
    return registry.page("dppo").build({names.get(name, name): value for name, value in case.settings.items()})


class Chain(torch.nn.Module):
    """A policy that acts by diffusion, with a network of one layer; it is `networks.actor` of itself."""

    memoryless = True

    def __init__(self, case: Case, weights: str, process: Diffusion) -> None:
        super().__init__()
        self.weights = torch.nn.Parameter(case.tensor(weights))
        self.seen = case.tensor("U")
        self.process = process

    def actor(self, x: torch.Tensor, time: torch.Tensor, observation: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x @ self.weights + observation @ self.seen)

    def evaluate(self, batch: Trajectories, want: frozenset[str]) -> Evaluation:
        return Evaluation(logp=self.process.log_prob_of_step(self, batch.observation, batch.action, batch[INNER]))


@cases("dppo", "loss")
def test_the_step_is_the_authors(case: Case) -> None:
    """From chain states to the gradient of the network: means, densities with bounds, ranges and discounts of inner steps."""
    method = built(case)
    options = dict(method.rollout.policy_options)
    options.pop("policy")
    process = Diffusion(**options)
    action = torch.cat([case.tensor("previous"), case.tensor("next")], -1).unsqueeze(1)
    columns = {"observation": case.tensor("state").unsqueeze(1), "action": action}
    columns |= {INNER: case.tensor("inner").long().unsqueeze(1), "advantage": case.tensor("advantage").unsqueeze(1)}
    batch = Trajectories({**columns, "mask": torch.ones(len(action), 1, dtype=torch.bool)})
    old = Chain(case, "W_old", process).evaluate(batch, frozenset()).logp.detach()
    case.check("logp_old", old[:, 0])
    policy = Chain(case, "W", process)
    case.check("logp", policy.evaluate(batch, frozenset()).logp[:, 0])
    where = context(method=method, policy=policy, step=0)
    method.update.prepare(where)
    method.update.step(batch.replace(logp_old=old), where)
    assert policy.weights.grad is not None
    case.check("W_grad", policy.weights.grad)
    assert where.metrics.collect()["loss/policy"] == pytest.approx(case.outputs["loss"], rel=1e-5, abs=1e-7)


@cases("dppo", "gae")
def test_returns_are_the_authors_where_no_time_limit_cuts(case: Case) -> None:
    over, value = case.tensor("terminated"), case.tensor("value")
    after = torch.cat([value[:, 1:], case.tensor("last_value").unsqueeze(1)], 1)
    columns = {"reward": case.tensor("reward"), "value": value, "next_value": after, "terminated": over}
    batch = Trajectories({**columns, "truncated": torch.zeros_like(over), "mask": torch.ones_like(over)})
    found = built(case).advantage(batch, context())
    case.check("returns", found.returns)
    case.check("advantage", found.advantage)
