"""Flow matching learns the data's density."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import vantage
from tests.core.toy import ToyTask
from tests.harness import context
from tests.methods.generative.flows import assert_resumes
from tests.reference import Case, cases
from vantage.core import UserError
from vantage.core.loss import method_loss, weighted
from vantage.methods import registry
from vantage.policies.flow import FlowPolicy
from vantage.rollouts.interpolated import Interpolated
from vantage.tasks.generative.task import task_from_spec


def test_pairs_lie_on_lines_from_noise_to_data() -> None:
    task = task_from_spec("flow2d:ring,std=0.01")
    where = context(task=task, device=torch.device("cpu"))
    batch = Interpolated(64)(where)
    x, time, direction = batch.observation["x"], batch.observation["time"].unsqueeze(-1), batch.action
    data = x - time * direction
    assert torch.cdist(data[:, 0], task.data.means()).amin(1).max() < 0.06
    torch.testing.assert_close(data + direction, x + (1 - time) * direction)
    assert (data + direction)[:, 0].std() == pytest.approx(1.0, abs=0.2)


def test_the_loss_is_the_mean_squared_error_of_the_velocity() -> None:
    task = task_from_spec("flow2d:ring", {"hidden": [8]})
    policy = task.make_policy()
    where = context(task=task, device=torch.device("cpu"))
    batch = Interpolated(16)(where)
    method = vantage.method("flow-matching")
    loss = method.objective(policy.evaluate(batch, method.wants), batch, where)
    velocity = policy.velocity(batch.observation["x"], batch.observation["time"])
    torch.testing.assert_close(loss, (velocity - batch.action).square().mean(-1))
    with pytest.raises(UserError, match="data to match"):
        Interpolated(4)(context(task=ToyTask()))


@cases("flow-matching")
def test_points_loss_and_gradient_are_those_of_the_library(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its time is 1 - t, and its velocity minus ours."""
    noise, data = case.tensor("noise"), case.tensor("data")
    monkeypatch.setattr(torch, "randn", lambda *_, **__: noise)
    monkeypatch.setattr(torch, "rand", lambda *_, **__: 1 - case.tensor("time").unsqueeze(1))
    method = registry.page("flow-matching").make({"batch": len(data)})
    drawn = SimpleNamespace(data=SimpleNamespace(draw=lambda *_: (data, None)))
    batch = method.rollout(context(task=drawn, device=torch.device("cpu")))
    case.check("point", batch.observation["x"][:, 0])
    case.check("velocity", -batch.action[:, 0])
    found = case.tensor("predicted").requires_grad_()
    policy = FlowPolicy.new((2,), hidden=(4,))
    monkeypatch.setattr(FlowPolicy, "velocity", lambda *_: -found.unsqueeze(1))
    # The page's loss in double precision: the policy's own is in single.
    monkeypatch.setattr(torch.Tensor, "float", lambda self: self)
    evaluation = policy.evaluate(batch, method.wants)
    ready = weighted(batch, method.averaging)
    loss = method_loss(evaluation, ready, context(method=method), ready)
    case.check("loss", loss)
    case.check("gradient", torch.autograd.grad(loss, found)[0])


def test_it_learns_and_its_model_is_loaded_again(tmp_path: Path) -> None:
    run = vantage.train(
        "flow-matching", "flow2d:ring,modes=3", steps=120, settings={"batch": 128, "lr": 1e-2}, evaluate_samples=300,
        options={"hidden": [32, 32]}, out=tmp_path / "run",
    )  # fmt: skip
    first, last = run.metrics[0], run.metrics[-1]
    assert last["eval/gold"] > first["eval/gold"] + 2
    assert last["eval/kept"] > first["eval/kept"] + 0.2
    judged = vantage.evaluate(tmp_path / "run", samples=300)
    assert judged["kept"] == pytest.approx(last["eval/kept"], abs=0.15)


@pytest.mark.parametrize("spec", ["flow2d:grid,modes=3", "digits:class"])
def test_a_resumed_run_is_the_run_that_never_stopped(spec: str, tmp_path: Path) -> None:
    if spec.startswith("digits"):
        pytest.importorskip("sklearn")
    assert_resumes(tmp_path, vantage.method("flow-matching", batch=16), spec)
