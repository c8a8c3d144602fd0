"""TD3+BC: its two losses written out, what each one moves, and when."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import vantage
from tests.harness import context
from tests.methods.offline.theirs import check_twin
from tests.methods.offline.worlds import assert_resumes, batch_of, runner
from tests.reference import Case, cases
from vantage.advantages.twin_q import TwinQ
from vantage.core import Evaluation, UserError
from vantage.methods import registry
from vantage.objectives.deterministic import AnchoredGradient
from vantage.updates.optimizers import Adam


def snapshot(policy: Any, *prefixes: str) -> list[torch.Tensor]:
    return [p.detach().clone() for name, p in policy.named_parameters() if name.startswith(prefixes)]


def changed(before: list[torch.Tensor], after: list[torch.Tensor]) -> bool:
    return any(not torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_actor_loss_is_the_papers() -> None:
    trainer = runner(vantage.method("td3-bc", alpha=1.5), 1)
    batch, policy = batch_of(trainer), trainer.context.policy
    assert isinstance(policy, torch.nn.Module)
    wants = frozenset({"mean", "q_mean"})
    loss = trainer.context.method.objective(policy.evaluate(batch, wants), batch, trainer.context).mean()
    held: Any = policy
    action = held.mean_action(batch.observation)
    q = held.q(batch.observation, action)[0]
    wanted = -(1.5 / q.abs().mean().detach()) * q.mean() + (action - batch.action).square().mean()
    torch.testing.assert_close(loss, wanted)
    actor = list(held.actor.parameters())
    for one, other in zip(torch.autograd.grad(loss, actor), torch.autograd.grad(wanted, actor), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)


def test_scale_of_the_values_does_not_matter() -> None:
    generator = torch.Generator().manual_seed(0)
    mean = torch.rand(6, 1, 2, generator=generator, requires_grad=True)
    batch = vantage.core.Trajectories({"action": torch.rand(6, 1, 2, generator=generator)})
    part = AnchoredGradient(2.0)

    def gradient(scale: float) -> torch.Tensor:
        q = scale * (3 * mean[..., 0] - mean[..., 1].square())
        loss = part(Evaluation(extras={"mean": mean, "q_mean": q}), batch, context()).mean()
        return torch.autograd.grad(loss, mean)[0]

    torch.testing.assert_close(gradient(1.0), gradient(250.0))


def test_critics_fit_the_smaller_target_and_never_bootstrap_past_an_end() -> None:
    trainer = runner(vantage.method("td3-bc", noise=0.0, gamma=0.9), 1)
    where: Any = trainer.context
    policy: Any = where.policy
    with torch.no_grad():
        for network, shift in zip(policy.target_critics, (0.0, 5.0), strict=True):
            network.linears[-1].weight.zero_()
            network.linears[-1].bias.fill_(2.0 + shift)
    batch = batch_of(trainer)
    batch = batch.replace(terminated=(torch.arange(32) % 2 == 0).unsqueeze(1))
    aim = batch.reward + 0.9 * 2.0 * (~batch.terminated)
    wanted = (policy.q(batch.observation, batch.action) - aim).square().mean((1, 2)).sum()
    where.method.values.fit(batch, where)
    assert where.metrics.collect()["loss/value"] == pytest.approx(float(wanted.detach()), rel=1e-5)


def test_the_actor_moves_every_second_step_and_targets_with_it() -> None:
    trainer = runner(vantage.method("td3-bc", rows=16), 4)
    policy: Any = trainer.context.policy
    for step in range(1, 5):
        actor, critics, targets = (snapshot(policy, name) for name in ("actor.", "critics.", "target_"))
        trainer.step()
        assert changed(critics, snapshot(policy, "critics."))
        assert changed(actor, snapshot(policy, "actor.")) == (step % 2 == 0)
        assert changed(targets, snapshot(policy, "target_")) == (step % 2 == 0)


def test_no_gradient_of_the_actors_loss_reaches_the_critics() -> None:
    trainer = runner(vantage.method("td3-bc"), 1)
    batch, policy = batch_of(trainer), trainer.context.policy
    held: Any = policy
    held.evaluate(batch, frozenset({"q_mean"})).extras["q_mean"].sum().backward()
    assert all(p.grad is None for p in held.critics.parameters())
    assert all(p.grad is not None for p in held.actor.parameters())


def test_without_the_pull_the_anchor_is_not_asked() -> None:
    part = AnchoredGradient(1.0, anchor=None, pull=0.0)
    mean = torch.rand(3, 1, 2)
    q = torch.tensor([[1.0], [2.0], [3.0]])
    loss = part(Evaluation(extras={"mean": mean, "q_mean": q}), None, context())  # type: ignore[arg-type]
    assert loss.tolist() == pytest.approx([-0.5, -1.0, -1.5])


def test_a_resumed_run_is_the_run(tmp_path: Path) -> None:
    assert_resumes(tmp_path, vantage.method("td3-bc", rows=16))


def test_settings_and_tasks_that_do_not_fit_are_refused() -> None:
    for settings in ({"alpha": -1.0}, {"gamma": 1.5}, {"noise": -0.1}, {"tau": 0.0}, {"every": 0}):
        with pytest.raises(UserError, match=str(next(iter(settings.values())))):
            vantage.method("td3-bc", **settings)
    with pytest.raises(UserError, match="needs recorded transitions"):
        vantage.train("td3-bc", "cartpole", steps=1, evaluate_samples=0)
    with pytest.raises(UserError, match=r"which the task .offline:steps=200. does not offer"):
        vantage.train("ppo", "offline:steps=200", steps=1, evaluate_samples=0)
    assert TwinQ(optimizer=Adam()).gamma == 0.99


@cases("td3-bc")
def test_steps_are_the_authors_with_the_critic_first(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """All targets and the last gradients after two and four steps, episodes that end among them."""
    names = {"discount": "gamma", "policy_noise": "noise"}
    settings = {names.get(name, name): value for name, value in case.settings.items()}
    check_twin(case, registry.page("td3-bc").build(settings), None, monkeypatch)
