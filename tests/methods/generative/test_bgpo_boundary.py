"""BGPO and the joint objective that it bounds: the numbers of its card, gradients, and memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import vantage
from tests.harness import context
from vantage.core import Evaluation, Method, Schedule, Trainer, Trajectories, UserError
from vantage.core.checkpoint import load_tensors
from vantage.core.loss import backward
from vantage.objectives.elbo import JointBound, LinearBound
from vantage.tasks.generative.masked import task_from_spec

OPTIONS = {"width": 16, "layers": 1, "heads": 2, "evaluated": 8}
SMALL = {"prompts": 3, "group_size": 4, "lr": 1e-3}


def bounds(difference: list[float], advantage: float) -> tuple[float, float]:
    """(joint objective J, its bound B) of one answer."""
    d = torch.tensor(difference, dtype=torch.float64).unsqueeze(1)
    batch = Trajectories(
        {
            "mask": torch.ones_like(d, dtype=torch.bool),
            "advantage": torch.full_like(d, advantage),
            "logp_old": torch.zeros_like(d),
            "answer": torch.zeros(len(d), dtype=torch.int64),
        }
    )
    found = [part(Evaluation(logp=d), batch, context()) for part in (JointBound(), LinearBound())]
    return -float(found[0].mean()), -float(found[1].mean())


@pytest.mark.parametrize(("advantage", "joint", "bound"), [(1.0, 1.05127, 1.05), (-1.0, -1.05127, -1.06312)])
def test_worked_bounds(advantage: float, joint: float, bound: float) -> None:
    assert bounds([0.2, -0.1], advantage) == pytest.approx((joint, bound), abs=1e-5)


def test_it_is_a_lower_bound_and_where_it_is_tight() -> None:
    generator = torch.Generator().manual_seed(0)
    for row in torch.randn(50, 5, generator=generator).tolist():
        for advantage in (1.7, -0.6):
            joint, bound = bounds(row, advantage)
            assert bound <= joint + 1e-12
    joint, bound = bounds([0.3], -2.0)
    assert bound == pytest.approx(joint)
    joint, bound = bounds([0.4] * 3, -1.0)
    assert bound == pytest.approx(joint)
    joint, bound = bounds([0.4] * 3, 2.0)
    gap = 2.0 * (torch.tensor(0.4, dtype=torch.float64).exp() - 1.4)
    assert joint - bound == pytest.approx(float(gap))


def test_options_of_the_bound() -> None:
    d = torch.tensor([[0.3, 0.5], [-0.2, -1.0]], dtype=torch.float64)
    batch = Trajectories(
        {
            "mask": torch.ones(2, 2, dtype=torch.bool),
            "advantage": torch.full((2, 2), -1.0),
            "logp_old": torch.zeros(2, 2),
        }
    )
    found = LinearBound(by_length=True)(Evaluation(logp=d), batch, context())
    assert found.tolist() == pytest.approx(torch.tensor([0.4, -0.6]).exp().tolist())
    found = LinearBound(limit=0.5)(Evaluation(logp=d), batch, context())
    assert found.tolist() == pytest.approx(torch.tensor([0.5, -0.5]).exp().tolist())
    with pytest.raises(UserError, match="limit=0"):
        LinearBound(limit=0.0)


def trainer(method: Method, steps: int = 4, folder: Path | None = None) -> Trainer:
    torch.manual_seed(0)
    task = task_from_spec("masked:addition:digits=1", OPTIONS)
    policy = task.make_policy(seed=1).double()
    schedule = Schedule(steps, save_every=1, evaluate_samples=1, keep=10)
    return Trainer(method, task, policy, task.make_engine(policy), schedule, seed=3, folder=folder)


def prepared(name: str, samples: int, **settings: Any) -> tuple[Trainer, Trajectories]:
    """A batch of sampled answers, some called right, expanded by its masks."""
    where = trainer(vantage.method(name, **SMALL, samples=samples, **settings))
    run, method = where.context, where.context.method
    batch = method.rollout(run)
    generator = torch.Generator().manual_seed(5)
    batch = batch.replace(score=torch.rand(len(batch), generator=generator))
    batch = batch.replace(advantage=method.advantage(batch, run))
    return where, method.selection[0](batch, run)


def gradient(where: Trainer, batch: Trajectories, micro: int | None, objective: Any = None) -> Tensor:
    context = where.context
    if objective is not None:
        context.method = context.method.replace(objective=objective)
    for parameter in context.policy.parameters():
        parameter.grad = None
    backward(batch, context, micro)
    return torch.cat([p.grad.flatten() for p in context.policy.parameters() if p.grad is not None])


def test_samples_one_by_one_give_the_gradient_of_all_held_in_memory() -> None:
    where, batch = prepared("bgpo-boundary", 6, minibatches=2)
    # The policy has moved since the batch was drawn, so that both sides of the bound differ from the joint objective.
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in where.context.policy.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    whole = gradient(where, batch, None)
    assert whole.abs().max() > 1e-3
    for micro in (1, 12, 17):
        torch.testing.assert_close(gradient(where, batch, micro), whole)
    joint = gradient(where, batch, None, JointBound())
    assert not torch.allclose(joint, whole, rtol=1e-3)
    # The joint objective keeps the samples of a prompt's answers together, whatever is asked.
    torch.testing.assert_close(gradient(where, batch, 1, JointBound()), joint)


def test_on_policy_value_and_gradient_are_those_of_the_joint_objective() -> None:
    where, batch = prepared("bgpo-boundary", 5)
    assert "logp_old" not in batch
    bound, joint = gradient(where, batch, None), gradient(where, batch, None, JointBound())
    torch.testing.assert_close(bound, joint)
    policy = where.context.policy
    credit = batch.advantage[:, 0].double()
    plain = -(credit * policy.evaluate(batch, frozenset({"logp"})).logp.sum(-1)).mean()
    found = torch.autograd.grad(plain, list(policy.parameters()))
    torch.testing.assert_close(bound, torch.cat([g.flatten() for g in found]))


def saved(where: Trainer, batch: Trajectories, micro: int | None) -> int:
    """Most bytes of tensors that the graph held at one time."""
    now, most = 0, 0

    class Held:
        def __init__(self, tensor: Tensor) -> None:
            nonlocal now, most
            self.tensor, self.size = tensor, tensor.numel() * tensor.element_size()
            now += self.size
            most = max(most, now)

        def __del__(self) -> None:
            nonlocal now
            now -= self.size

    with torch.autograd.graph.saved_tensors_hooks(Held, lambda held: held.tensor):
        gradient(where, batch, micro)
    return most


def test_memory_of_the_graph_does_not_grow_with_the_number_of_samples() -> None:
    peaks: dict[str, list[int]] = {"bgpo-boundary": [], "elbo-grpo": []}
    for name, found in peaks.items():
        for samples in (2, 4, 16):
            where, batch = prepared(name, samples)
            found.append(saved(where, batch, where.context.method.update.micro_batch))
    flat, grown = peaks["bgpo-boundary"], peaks["elbo-grpo"]
    assert max(flat) <= 1.05 * min(flat)
    assert grown[2] > 6 * grown[0]


def test_the_variance_of_the_gradient_falls_like_one_over_n() -> None:
    variances = []
    for samples in (1, 4, 16):
        where, _ = prepared("bgpo-boundary", 1)
        run = where.context
        rows = run.method.rollout(run)
        generator = torch.Generator().manual_seed(5)
        rows = rows.replace(score=torch.rand(len(rows), generator=generator))
        rows = rows.replace(advantage=run.method.advantage(rows, run))
        select = vantage.method("bgpo-boundary", samples=samples).selection[0]
        found = torch.stack([gradient(where, select(rows, run), None) for _ in range(40)])
        variances.append(float(found.var(0).sum()))
    assert variances[0] / variances[1] == pytest.approx(4, rel=0.35)
    assert variances[1] / variances[2] == pytest.approx(4, rel=0.35)


def test_off_policy_the_same_masks_serve_both_policies() -> None:
    where, batch = prepared("bgpo-boundary", 3, minibatches=2)
    found = where.context.policy.evaluate(batch, frozenset({"logp"})).logp
    torch.testing.assert_close(found.detach(), batch.logp_old)
    assert batch["answer"].tolist() == [i // 3 for i in range(36)]


@pytest.mark.parametrize("name", ["bgpo-boundary", "elbo-grpo", "masked-diffusion"])
def test_a_resumed_run_is_the_run_that_never_stopped(name: str, tmp_path: Path) -> None:
    settings = {"batch": 8} if name == "masked-diffusion" else {**SMALL, "samples": 2, "minibatches": 2}
    method = vantage.method(name, **settings)
    for part in ("whole", "broken"):
        (tmp_path / part).mkdir()
    history = trainer(method, 3, tmp_path / "whole").run().history
    first = trainer(method, 3, tmp_path / "broken")
    first.listeners.append(lambda report: setattr(first, "_interrupted", report.step == 1))
    assert first.run().status == "interrupted"
    again = trainer(method, 3, tmp_path / "broken")
    assert again.restore() == 1
    assert again.run().history == history[2:]
    file = "checkpoints/step-00000003/policy.safetensors"
    one, other = load_tensors(tmp_path / "whole" / file), load_tensors(tmp_path / "broken" / file)
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_a_model_learns_by_imitation_then_by_reward(tmp_path: Path) -> None:
    task, options = "masked:addition:digits=1", {"width": 32, "layers": 2, "heads": 2, "evaluated": 40}
    run = vantage.train(
        "masked-diffusion", task, steps=120, settings={"batch": 32, "lr": 5e-3}, options=options, out=tmp_path / "run"
    )
    assert run.metrics[-1]["loss/policy"] < 0.7 * run.metrics[1]["loss/policy"]
    tuned = vantage.train(
        "bgpo-boundary", task, model=tmp_path / "run" / "model", steps=3, options=options,
        settings={"prompts": 4, "group_size": 4, "samples": 2, "lr": 1e-3},
    )  # fmt: skip
    assert tuned.outcome.step == 3
    # The policy has a one-pass estimate, so that any method of groups trains it.
    other = vantage.train(
        "grpo", task, steps=2, options=options, evaluate_samples=0,
        settings={"prompts": 2, "group_size": 4, "lr": 1e-3, "beta": 0.01},
    )  # fmt: skip
    assert other.outcome.step == 2


def test_a_specification_is_read_and_mistakes_are_named() -> None:
    task = task_from_spec("masked:addition:digits=2", {"per_step": 2})
    policy = task.make_policy()
    assert (policy.prompt_length, policy.length) == (6, 4)
    assert task.make_engine(policy).per_step == 2
    with pytest.raises(UserError, match="say of which problems"):
        task_from_spec("masked")
    with pytest.raises(UserError, match="did you mean addition"):
        task_from_spec("masked:adition")
    with pytest.raises(UserError, match="did you mean width"):
        task_from_spec("masked:addition", {"widht": 3})
