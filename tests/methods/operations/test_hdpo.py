"""HDPO: the pathwise gradient against finite differences, and the best base-stock level found."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import vantage
from tests.harness import assert_resumes, context
from tests.reference import Case, cases
from vantage.cli import main
from vantage.core import Evaluation, Trajectories
from vantage.core.errors import UserError
from vantage.core.loss import method_loss, weighted
from vantage.methods import registry
from vantage.policies.base_stock import BaseStockPolicy
from vantage.policies.distributions import Gaussian
from vantage.tasks.inventory.engine import scenarios
from vantage.updates.pathwise import REPLAYED, ReplayedCost


class Exact(torch.nn.Module):
    """The same perceptron in double precision, where a finite difference is sharp."""

    def __init__(self, actor: torch.nn.Module) -> None:
        super().__init__()
        self.actor = actor

    def distribution_of(self, observation: torch.Tensor) -> Gaussian:
        return Gaussian(self.actor(observation), torch.zeros(1))


@pytest.mark.parametrize("lost", ["true", "false"])
def test_the_gradient_is_the_finite_difference_on_the_same_scenarios(lost: str) -> None:
    task = vantage.task(f"inventory:lead_time=2,lost={lost},periods=20")
    policy = Exact(task.make_policy(seed=1).actor.double())
    start, demand = scenarios(task.system, torch.arange(32), 20, 0)
    batch = Trajectories(
        {
            "start": start.double(),
            "demand": demand.double(),
            "mask": torch.ones(32, 20, dtype=torch.bool),
            "truncated": torch.zeros(32, 20, dtype=torch.bool),
        }
    )
    torch.manual_seed(0)
    direction = [torch.randn_like(p) for p in policy.actor.parameters()]
    loss = -task.replay(policy, batch).mean()
    gradients = torch.autograd.grad(loss, list(policy.actor.parameters()))
    slope = sum(float((g * d).sum()) for g, d in zip(gradients, direction, strict=True))

    def moved(step: float) -> float:
        with torch.no_grad():
            for p, d in zip(policy.actor.parameters(), direction, strict=True):
                p.add_(step * d)
            value = float(-task.replay(policy, batch).mean())
            for p, d in zip(policy.actor.parameters(), direction, strict=True):
                p.sub_(step * d)
        return value

    step = 1e-7
    assert slope == pytest.approx((moved(step) - moved(-step)) / (2 * step), rel=1e-4, abs=1e-6)
    assert abs(slope) > 1e-3


@cases("hdpo")
def test_cost_and_slope_of_a_base_stock_level_are_the_authors(case: Case) -> None:
    settings = {name: str(value).lower() for name, value in case.settings.items()}
    spec = ",".join(f"{name}={settings[name]}" for name in ("lead_time", "lost", "level", "holding", "penalty"))
    task = vantage.task(f"inventory:policy=base-stock,{spec}")
    policy = task.make_policy().double()
    demand = case.tensor("demand").unsqueeze(-1)
    no = torch.zeros(demand.shape[:2], dtype=torch.bool)
    batch = Trajectories(
        {"start": case.tensor("start"), "demand": demand, "mask": ~no, "truncated": no, "length": (~no).sum(1)}
    )
    method = registry.page("hdpo").make()
    evaluation = Evaluation(extras={REPLAYED: task.replay(policy, batch)})
    ready = weighted(batch, method.averaging)
    loss = method_loss(evaluation, ready, context(method=method), ready) * task.system.cost_unit
    case.check("loss", loss)
    case.check("gradient", torch.autograd.grad(loss, policy.level)[0].squeeze())


def test_a_stationary_level_has_the_newsvendor_gradient() -> None:
    """Once a base-stock level is reached, stock after delivery is S less the demand of L periods, whatever came before: the
    gradient in S of a period's cost is h where the demand of L + 1 periods is at most S, and -p elsewhere."""
    task = vantage.task("inventory:lead_time=2,policy=base-stock,level=17.5,periods=30")
    policy = task.make_policy().double()
    _, demand = scenarios(task.system, torch.arange(400), 30, 0)
    demand = demand.double()
    no = torch.zeros(400, 30, dtype=torch.bool)
    columns = {"start": torch.zeros(400, 3).double(), "demand": demand, "mask": ~no, "truncated": no}
    cost = -task.replay(policy, Trajectories(columns)) * task.system.cost_unit
    (slope,) = torch.autograd.grad(cost[:, 2:].mean(), policy.level)
    total = demand[:, :, 0].unfold(1, 3, 1).sum(-1)
    covered = float((total <= 17.5).double().mean())
    assert float(slope) == pytest.approx(covered - 9 * (1 - covered), abs=1e-9)


def test_it_finds_the_best_level() -> None:
    task = vantage.task("inventory:lead_time=1,policy=base-stock,level=9,periods=30,evaluated=300,burn_in=20")
    method = vantage.method("hdpo", scenarios=512, lr=0.3, anneal=True)
    run = vantage.train(method, task, steps=512 * 30 * 60, evaluate_samples=64)
    assert float(run.policy.level.detach()) == pytest.approx(14.0, abs=0.45)
    gap = [line["eval/gap"] for line in run.outcome.history if "eval/gap" in line]
    assert gap[0] > 0.9
    assert gap[-1] < 0.03


def test_capped_orders() -> None:
    policy = BaseStockPolicy(level=10.0, cap=4.0)
    orders = policy.orders(torch.tensor([[1.0, 2.0], [8.0, 1.0], [11.0, 0.0]]))
    assert orders.tolist() == [[4.0], [1.0], [0.0]]
    torch.testing.assert_close(torch.autograd.grad(orders.sum(), policy.level)[0], torch.tensor(1.0))


def test_micro_batches_leave_the_gradient_as_it_is() -> None:
    gradients = []
    for size in (None, 3):
        task = vantage.task("inventory:lead_time=1,periods=8")
        policy = task.make_policy(seed=0)
        method = vantage.method("hdpo", scenarios=8).adapt("update", micro_batch=size)
        vantage.train(method, task, steps=64, evaluate_samples=0, policy=policy)
        gradients.append(torch.cat([p.grad.flatten() for p in policy.actor.parameters()]))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-6)


def test_it_runs_from_the_command_line_and_is_evaluated_from_its_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = "inventory:lead_time=1,periods=10,evaluated=60,burn_in=10"
    given = ["hdpo", "--task", spec, "--steps", "240", "--set", "scenarios=4", "--out", str(tmp_path / "a")]
    assert main(["train", *given]) == 0
    capsys.readouterr()
    judged = vantage.evaluate(tmp_path / "a", samples=4, seed=1)
    lines = [json.loads(line) for line in (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == 6
    assert judged["cost"] == pytest.approx(lines[-1]["eval/cost"])


def test_a_resumed_run_is_the_run(tmp_path: Path) -> None:
    assert_resumes(
        tmp_path, vantage.method("hdpo", scenarios=4), "inventory:lead_time=1,periods=10,evaluated=60,burn_in=10"
    )


def test_refusals() -> None:
    with pytest.raises(UserError, match="needs a differentiable simulator"):
        vantage.train("hdpo", "cartpole", steps=10, settings={"scenarios": 2}, evaluate_samples=0)
    with pytest.raises(UserError, match=r"a differentiable simulator, which the task .lot-sizing."):
        vantage.train("hdpo", "lot-sizing", steps=1000, settings={"scenarios": 2}, evaluate_samples=0)
    with pytest.raises(UserError, match="lead_tim"):
        vantage.task("inventory:lead_tim=2")
    with pytest.raises(UserError, match="base-stock goes with a store"):
        vantage.task("lot-sizing:policy=base-stock")
    assert ReplayedCost().unit == "row"
