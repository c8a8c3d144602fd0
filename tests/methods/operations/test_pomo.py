"""POMO: its loss against the formula, and that it learns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import vantage
from tests.harness import assert_resumes, context, loss_of
from tests.reference import Case, cases
from vantage.core import Schedule, Trainer, Trajectories
from vantage.methods import registry

SMALL: dict[str, Any] = {"width": 16, "layers": 1, "heads": 2, "feedforward": 32, "reference": None}


def tours(
    method: vantage.Method, spec: str = "tsp:nodes=6", seed: int = 0, **options: Any
) -> tuple[Any, Trajectories, Any]:
    """A policy, a batch of the method's rollout with scores and advantages, and the context."""
    task = vantage.task(spec, options={**SMALL, **options})
    policy = task.make_policy(seed=seed)
    where = Trainer(method, task, policy, task.make_engine(policy), Schedule(10)).context
    batch = where.method.rewards[0](where.method.rollout(where), where)
    credit = where.method.advantage(batch, where)
    return policy, credit if isinstance(credit, Trajectories) else batch.replace(advantage=credit), where


@pytest.mark.parametrize("spec", ["tsp:nodes=6", "cvrp:nodes=6,capacity=12"])
def test_the_loss_is_the_formula_and_the_forced_node_is_no_part_of_it(spec: str) -> None:
    method = vantage.method("pomo", prompts=3)
    policy, batch, _ = tours(method, spec)
    assert len(batch) == 18
    logp = policy.evaluate(batch, frozenset({"logp"})).logp.detach().requires_grad_()
    loss = loss_of(method, batch, logp=logp)
    returns = batch.score.view(3, 6)
    weight = (returns - returns.mean(1, keepdim=True)).flatten()
    expected = -(weight * (logp * batch.mask).sum(1)).mean()
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-4)
    loss.backward()
    assert torch.allclose(logp.grad, -(weight.unsqueeze(1) * batch.mask) / 18, atol=1e-6)
    assert logp.grad[:, 0].abs().max() == 0
    assert float(weight.view(3, 6).sum(1).abs().max()) < 1e-5
    # Every start is taken once; each score is that of the whole tour, the forced way included.
    assert batch.start.view(3, 6).tolist() == [list(range(6))] * 3
    nodes = batch.observation
    order = batch.action if "tsp" in spec else torch.cat([torch.zeros(18, 1, dtype=torch.int64), batch.action], 1)
    stops = nodes[..., :2].gather(1, order.unsqueeze(-1).expand(-1, -1, 2))
    way = (stops - stops.roll(-1, 1)).norm(dim=-1).sum(1)
    assert torch.allclose(batch.score, -way, atol=1e-5)


@cases("pomo")
def test_the_loss_is_the_authors(case: Case) -> None:
    logp, score = case.tensor("logp").flatten(0, 1).requires_grad_(), case.tensor("score")
    mask = (torch.arange(logp.shape[1]) > 0).expand(logp.shape)
    batch = Trajectories(
        {
            "score": score.flatten(),
            "group": torch.arange(len(score)).repeat_interleave(score.shape[1]),
            "mask": mask,
            "length": torch.full((len(mask),), mask.shape[1]),
        }
    )
    method = registry.page("pomo").make()
    loss = loss_of(method, batch.replace(advantage=method.advantage(batch, context())), logp=logp)
    case.check("loss", loss)
    case.check("gradient", torch.autograd.grad(loss, logp)[0].view_as(case.tensor("logp"))[..., 1:])


def test_the_decay_is_in_the_gradient_and_the_rate_falls_to_a_tenth_at_the_end() -> None:
    update = vantage.method("pomo").update
    made = update.optimizer.build([torch.nn.Parameter(torch.ones(1))])
    assert type(made) is torch.optim.Adam
    assert made.defaults["weight_decay"] == 1e-6
    assert [update.schedule(step, 3100) for step in (0, 2999, 3000, 3099)] == [1.0, 1.0, 0.1, 0.1]


@pytest.mark.parametrize("spec", ["tsp:nodes=8", "cvrp:nodes=8,capacity=15"])
def test_it_learns(spec: str) -> None:
    task = vantage.task(spec, options={**SMALL, "width": 32})
    run = vantage.train("pomo", task, steps=12, settings={"prompts": 16, "lr": 3e-3}, evaluate_samples=0)
    lengths = [line["tour/length"] for line in run.outcome.history if "tour/length" in line]
    assert lengths[-1] < 0.9 * lengths[0]


def test_a_resumed_run_is_the_run(tmp_path: Path) -> None:
    assert_resumes(tmp_path, vantage.method("pomo", prompts=3, lr=1e-3), "tsp:nodes=6", SMALL)
