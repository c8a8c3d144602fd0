"""Small flow models and the batches that they draw, for the tests of the pages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tests.harness import context
from tests.reference import Case
from vantage.core import Evaluation, Method, Schedule, Trainer, Trajectories
from vantage.core.checkpoint import load_tensors
from vantage.core.loss import method_loss, weighted
from vantage.policies.flow import normal_logp, transition
from vantage.tasks.generative.task import task_from_spec

OPTIONS = {"hidden": [16, 16], "evaluation_steps": 5}


def trainer(method: Method, steps: int = 4, spec: str = "flow2d:ring", folder: Path | None = None) -> Trainer:
    """A trainer of a fresh, small flow model."""
    torch.manual_seed(0)
    task = task_from_spec(spec, OPTIONS)
    policy = task.make_policy(seed=1)
    schedule = Schedule(steps, save_every=1, evaluate_samples=8, keep=10)
    return Trainer(method, task, policy, task.make_engine(policy), schedule, seed=3, folder=folder)


def credited(where: Trainer) -> Trajectories:
    """A batch as it comes to the update."""
    context, method = where.context, where.context.method
    batch = context.verify(method.rollout(context))
    for part in method.rewards:
        batch = part(batch, context)
    batch = batch.replace(advantage=method.advantage(batch, context))
    for part in method.selection:
        batch = part(batch, context)
    return batch


def loss_and_gradient(where: Trainer, batch: Trajectories, policy: Any = None) -> tuple[torch.Tensor, torch.Tensor]:
    """The method's objective, averaged, and its gradient in the policy's parameters."""
    method = where.context.method
    policy = policy or where.context.policy
    ready = weighted(batch, method.averaging)
    loss = method.objective(policy.evaluate(ready, method.wants), ready, where.context)
    total = (torch.where(batch.mask, loss, 0.0) * ready["_weights"]).sum()
    gradient = torch.autograd.grad(total, list(policy.parameters()))
    return loss.detach(), torch.cat([g.flatten() for g in gradient])


def moved(where: Trainer, scale: float = 0.02) -> Any:
    """A copy of the policy a little further on."""
    from copy import deepcopy

    policy = deepcopy(where.context.policy)
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return policy


def assert_resumes(folder: Path, method: Method, spec: str = "flow2d:ring") -> None:
    """A run that is dropped after its second step and resumed is the run that never stopped."""
    for name in ("whole", "broken"):
        (folder / name).mkdir()
    whole = trainer(method, 4, spec, folder / "whole")
    history = whole.run().history
    first = trainer(method, 4, spec, folder / "broken")
    first.listeners.append(lambda report: setattr(first, "_interrupted", report.step == 2))
    assert first.run().status == "interrupted"
    again = trainer(method, 4, spec, folder / "broken")
    assert again.restore() == 2
    assert again.run().history == history[3:]
    name = "checkpoints/step-00000004/policy.safetensors"
    one, other = load_tensors(folder / "whole" / name), load_tensors(folder / "broken" / name)
    assert all(torch.equal(one[key], other[key]) for key in one)


def loss_of_case(case: Case, method: Method) -> dict[str, torch.Tensor]:
    """The method's loss and its gradient in the velocities [N, T, *shape] of a reference case, and its steps' logp and sigma.

    The case's samples take the first steps of the sampler; the old policy's and the reference's velocities are given.
    """
    action, x = case.tensor("action"), case.tensor("x")
    rows, steps = action.shape[:2]
    sampler: Any = getattr(method.rollout, "sampler", None)
    times, sigma = sampler.times().double(), sampler.sigmas().double()[:steps].expand(rows, -1)
    now, after = times[:steps].expand(rows, -1), times[1 : steps + 1].expand(rows, -1)

    def means(name: str) -> tuple[torch.Tensor, torch.Tensor]:
        return transition(x, case.tensor(name), now, after, sigma)

    old, std = means("velocity_old")
    velocity = case.tensor("velocity").requires_grad_()
    mean = transition(x, velocity, now, after, sigma)[0]
    batch = Trajectories(
        {
            "observation": {"x": x, "time": now, "next_time": after, "sigma": sigma},
            "action": action,
            "mask": torch.ones(rows, steps, dtype=torch.bool),
            "length": torch.full((rows,), steps),
            "logp_old": normal_logp(action, old, std),
            "mean_old": old,
            "advantage": case.tensor("advantage").clamp(-5, 5).unsqueeze(1).expand(-1, steps),
        }
    )
    where = context(method=method, named=lambda name: name, evaluate=lambda *_: means("reference")[0])
    ready = weighted(batch, method.averaging)
    found = Evaluation(logp=normal_logp(action, mean, std), extras={"mean": mean})
    loss = method_loss(found, ready, where, ready)
    (gradient,) = torch.autograd.grad(loss, velocity)
    size = action[0, 0].numel()
    return {"loss": loss, "gradient": gradient, "logp": (found.logp / size).detach(), "sigma": sigma[0]}


def check_advantages(case: Case, method: Method) -> None:
    """The advantages of a reference case's scores, less the samples that are dropped, are the case's."""
    score = case.tensor("score")
    batch = Trajectories(
        {
            "score": score,
            "group": torch.tensor(case.inputs["group"]),
            "mask": torch.ones(len(score), 10, dtype=torch.bool),
            "observation": {"sigma": torch.ones(len(score), 10)},
        }
    )
    batch = batch.replace(advantage=method.advantage(batch, context()))  # type: ignore[call-arg, misc]
    for part in method.selection:
        batch = part(batch, context())
    assert batch.mask.sum(1).tolist() == [9] * int(sum(case.outputs["kept"]))
    case.check("advantage", batch.advantage[:, 0])
