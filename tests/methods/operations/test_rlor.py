"""RLOR: the identities of its card."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import vantage
from tests.harness import assert_resumes, context, loss_of
from tests.methods.operations.test_pomo import SMALL
from tests.reference import Case, cases
from vantage.core import Schedule, Trainer, Trajectories, UserError
from vantage.core.loss import weighted
from vantage.functions.whitening import whiten
from vantage.methods import registry


def trainer(spec: str = "tsp:nodes=6", **settings: float) -> Trainer:
    task = vantage.task(spec, options=SMALL)
    policy = task.make_policy(seed=0)
    given = {"prompts": 6, "starts": 5, "epochs": 2, "minibatches": 3, "anneal": False, **settings}
    return Trainer(vantage.method("rlor", **given), task, policy, task.make_engine(policy), Schedule(5), seed=0)


def count_encodings(run: Trainer) -> list[int]:
    calls: list[int] = []
    run.context.policy.encoder.register_forward_hook(lambda module, given, out: calls.append(len(out)))
    return calls


def test_a_step_encodes_once_for_the_rollout_and_once_a_minibatch() -> None:
    run = trainer()
    calls = count_encodings(run)
    run.step()
    assert calls == [6] + [2] * 6


def test_without_the_cache_it_encodes_at_every_decision_and_the_figures_are_the_same() -> None:
    for spec in ("tsp:nodes=6", "cvrp:nodes=6,capacity=12"):
        run = trainer(spec)
        batch = run.context.method.rollout(run.context)
        policy = run.context.policy
        want = frozenset({"logp", "value", "distribution"})
        cached = policy.evaluate(batch, want)
        slow = trainer(spec, cached=False)
        assert not slow.context.policy.cached
        policy.cached = False
        calls = count_encodings(run)
        plain = policy.evaluate(batch, want)
        # Decision by decision, besides the one that the search for the batch's instances leaves out.
        assert len(calls) == batch.steps
        finite = torch.isfinite(cached.distribution)
        assert torch.equal(finite, torch.isfinite(plain.distribution))
        assert torch.allclose(cached.distribution[finite], plain.distribution[finite], atol=1e-6)
        assert torch.allclose(cached.value, plain.value, atol=1e-6)
        calls.clear()
        slow_calls = count_encodings(slow)
        again = slow.context.method.rollout(slow.context)
        assert len(slow_calls) == again.steps
        assert torch.equal(again.action, batch.action)
        assert torch.allclose(again.logp_old, batch.logp_old, atol=1e-6)


def test_minibatches_hold_whole_instances_and_every_tour_once_an_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    run = trainer()
    update = run.context.method.update
    seen: list[Trajectories] = []
    monkeypatch.setattr(type(update), "step", lambda self, part, where: seen.append(part))
    run.step()
    assert len(seen) == 6
    for epoch in (seen[:3], seen[3:]):
        rows = torch.cat([part.prompt for part in epoch])
        assert sorted(rows.tolist()) == sorted([i for i in range(6) for _ in range(5)])
        sets = [set(part.prompt.tolist()) for part in epoch]
        assert sum(len(each) for each in sets) == 6
        assert len(set.union(*sets)) == 6


def test_one_epoch_of_one_minibatch_is_reinforce_with_the_normalised_advantage() -> None:
    run = trainer(epochs=1, minibatches=1, entropy_coefficient=0.0, value_coefficient=0.0)
    where = run.context
    method = where.method
    batch = method.rewards[0](method.rollout(where), where)
    batch = method.advantage(method.values(batch, where), where)
    credit = batch.advantage
    normal = batch.replace(advantage=(credit - credit.mean()) / (credit.std() + 1e-8))
    policy = where.policy
    judged = policy.evaluate(normal, method.wants)
    gradients = []
    plain = -(normal.advantage * judged.logp).mean()
    ready = weighted(normal, method.averaging)
    for loss in (method.objective(judged, ready, context(method=method)).mean(), plain):
        policy.zero_grad()
        loss.backward(retain_graph=True)
        gradients.append(torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None]))
    assert gradients[0].abs().max() > 0
    assert torch.allclose(*gradients, atol=1e-5)
    whole = loss_of(method, normal, logp=judged.logp, value=judged.value, entropy=judged.entropy)
    assert float(whole) == pytest.approx(float(-normal.advantage.mean()), abs=1e-5)


@cases("rlor")
def test_advantages_and_loss_are_the_authors(case: Case) -> None:
    method = registry.page("rlor").make({"gamma": case.settings["gamma"]})
    reward = case.tensor("reward")
    last = torch.zeros_like(reward, dtype=torch.bool)
    last[:, -1] = True
    value = case.tensor("value_old")
    batch = Trajectories(
        {
            "reward": reward,
            "value": value,
            "next_value": torch.cat([value[:, 1:], torch.zeros_like(value[:, :1])], 1),
            "logp_old": case.tensor("logp_old"),
            "group": torch.tensor(case.inputs["group"]),
            "mask": torch.ones_like(last),
            "length": torch.full((len(reward),), reward.shape[1]),
            "terminated": last,
            "truncated": torch.zeros_like(last),
        }
    )
    batch = method.advantage(batch, context(method=method))
    case.check("advantage", batch.advantage)
    case.check("returns", batch.returns)
    assert method.update.normalize_advantage is True
    normal = batch.replace(advantage=whiten(batch.advantage, batch.mask))
    outputs = {name: case.tensor(name).requires_grad_() for name in ("logp", "value", "entropy")}
    loss = loss_of(method, normal, **outputs)
    case.check("loss", loss)
    for name, gradient in zip(outputs, torch.autograd.grad(loss, list(outputs.values())), strict=True):
        case.check(f"{name}_gradient", gradient)


def test_with_gamma_and_lambda_one_the_first_return_is_minus_the_tour_and_below_one_it_is_not() -> None:
    for gamma, same in ((1.0, True), (0.9, False)):
        run = trainer(gamma=gamma, lam=1.0)
        where = run.context
        batch = where.method.rewards[0](where.method.rollout(where), where)
        batch = where.method.advantage(where.method.values(batch, where), where)
        assert torch.allclose(batch.returns[:, 0], batch.score, atol=1e-4) == same
        assert (batch.score < 0).all()


def test_it_learns() -> None:
    task = vantage.task("tsp:nodes=8", options={**SMALL, "width": 32})
    settings = {"prompts": 16, "starts": 8, "minibatches": 4, "lr": 3e-3, "gamma": 1.0}
    run = vantage.train("rlor", task, steps=15, settings=settings, evaluate_samples=0)
    lengths = [line["tour/length"] for line in run.outcome.history if "tour/length" in line]
    assert lengths[-1] < 0.9 * lengths[0]


def test_a_resumed_run_is_the_run(tmp_path: Path) -> None:
    method = vantage.method("rlor", prompts=6, starts=5, epochs=2, minibatches=3)
    assert_resumes(tmp_path, method, "tsp:nodes=6", SMALL)


def test_it_needs_a_routing_task() -> None:
    pytest.importorskip("gymnasium")
    with pytest.raises(UserError, match="needs a policy that builds tours"):
        vantage.train("rlor", "cartpole", steps=10)
