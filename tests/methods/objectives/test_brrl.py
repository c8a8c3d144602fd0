"""BPO: the numbers of its card."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import vantage
from tests.harness import context, loss_of
from tests.methods.toys import assert_resumes, trainer
from tests.reference import Case, cases
from vantage.core import Evaluation, Trajectories, UserError
from vantage.methods.objectives.brrl import BoundedRatio, MedianCritic
from vantage.objectives.ratio_target import ratio_regression
from vantage.policies.control import ControlPolicy
from vantage.policies.spaces import Actions, Observations


def one_step(count: int, **columns: Tensor) -> Trajectories:
    given = {name: column.unsqueeze(1) for name, column in columns.items()}
    return Trajectories({"mask": torch.ones(count, 1, dtype=torch.bool), **given}, rows=count)


def test_the_best_policy_of_four_arms() -> None:
    q = torch.tensor([4.0, 3.0, 2.0, 1.0])
    part = BoundedRatio(eps=0.2, softness=1e-6)
    batch = one_step(4, logp_old=torch.full((4,), 0.25).log(), returns=q)
    target = torch.tensor([1.2, 1.2, 0.8, 0.8])
    logp = (batch.logp_old + target.log().unsqueeze(1)).requires_grad_()
    middle = torch.full((4, 1), 2.5)
    loss = part(Evaluation(logp=logp, value=middle, extras={"median": middle}), batch, context())
    # The ratio that solves the problem costs nothing, is a distribution, and gains eps * E|Q - median|.
    assert loss.abs().max() < 1e-6
    pi = 0.25 * target
    assert float(pi.sum()) == pytest.approx(1)
    assert float((pi * q).sum() - q.mean()) == pytest.approx(0.2, rel=1e-5)
    assert 0.2 * float((q - 2.5).abs().mean()) == pytest.approx(0.2)


@cases("brrl", "loss")
def test_the_loss_is_the_authors(case: Case) -> None:
    method = vantage.method("brrl", **case.settings)
    names = ("logp", "value", "median", "entropy")
    logp, value, median, entropy = leaves = [case.tensor(name).unsqueeze(1).requires_grad_() for name in names]
    batch = one_step(len(logp), logp_old=case.tensor("logp_old"), returns=case.tensor("returns"))
    loss = loss_of(method, batch, logp=logp, value=value, entropy=entropy, extras={"median": median})
    loss.backward()
    case.check("loss", loss)
    for name, leaf in zip(names, leaves, strict=True):
        case.check(f"{name}_grad", torch.zeros(len(logp)) if leaf.grad is None else leaf.grad[:, 0])


@pytest.mark.parametrize(("target", "weight", "loss"), [(1.3, 2.0, 0.4), (0.7, 0.5, 0.2)])
def test_worked_losses(target: float, weight: float, loss: float) -> None:
    batch = one_step(1, logp_old=torch.zeros(1))
    logp = torch.tensor([[1.1]]).log()
    found = ratio_regression(Evaluation(logp=logp), batch, torch.tensor(target), torch.tensor(weight), 0.3, context())
    assert float(found) == pytest.approx(loss, abs=1e-6)


def test_gradient_has_constant_size_and_turns_at_the_target() -> None:
    part = BoundedRatio(eps=0.3, softness=1e-6)
    ratio = torch.tensor([0.5, 1.0, 1.29, 1.31, 2.0], dtype=torch.float64)
    batch = one_step(
        5, logp_old=torch.zeros(5, dtype=torch.float64), returns=torch.full((5,), 2.0, dtype=torch.float64)
    )
    logp = ratio.log().unsqueeze(1).requires_grad_()
    value = torch.full((5, 1), 0.5, dtype=torch.float64, requires_grad=True)
    median = torch.zeros(5, 1, dtype=torch.float64, requires_grad=True)
    part(Evaluation(logp=logp, value=value, extras={"median": median}), batch, context()).sum().backward()
    # In the ratio: |Q - V| times the sign of ratio - 1.3.
    assert (logp.grad[:, 0] / ratio).tolist() == pytest.approx([-1.5, -1.5, -1.5, 1.5, 1.5])
    assert value.grad is None
    assert median.grad is None


def test_median_loss_finds_the_middle() -> None:
    critic = MedianCritic(value=0.0, median=1.0)
    batch = one_step(2, returns=torch.tensor([0.0, 10.0], dtype=torch.float64))

    def loss(u: Tensor) -> Tensor:
        head = u.expand(2, 1)
        return critic.loss(Evaluation(value=head, extras={"median": head}), batch, context()).mean()

    points = torch.linspace(0, 10, 101, dtype=torch.float64)
    values = torch.stack([loss(u) for u in points])
    assert float(points[values.argmin()]) == pytest.approx(5.0)
    torch.testing.assert_close(values, values.flip(0))
    both = MedianCritic(0.5, 0.5)
    value, median = torch.randn(2, 1), torch.randn(2, 1)
    found = both.loss(
        Evaluation(value=value, extras={"median": median}), batch.replace(returns=torch.ones(2, 1)), context()
    )
    gap = 1 - median
    torch.testing.assert_close(found, 0.5 * (1 - value).square() + 0.5 * (F.softplus(gap) - 0.5 * gap))


def test_without_the_head_the_value_is_the_middle() -> None:
    part = BoundedRatio(median=False)
    assert part.wants == {"logp", "value"}
    batch = one_step(2, logp_old=torch.zeros(2), returns=torch.tensor([1.0, -1.0]))
    zero = torch.zeros(2, 1)
    found = part(Evaluation(logp=torch.tensor([[1.3], [0.7]]).log(), value=zero), batch, context())
    assert found.abs().max() < 1e-6


def test_a_head_goes_through_a_file_and_is_taught_alone(tmp_path) -> None:
    policy = ControlPolicy(Observations("vector", (3,)), Actions("discrete", (), sizes=(2,)), hidden=(8,))
    policy.add_head("median")
    policy.add_head("median")
    with torch.no_grad():
        policy.heads["median"].linears[0].bias.add_(0.5)
    policy.save(tmp_path)
    again = ControlPolicy.load(tmp_path)
    batch = Trajectories(
        {
            "observation": torch.randn(5, 1, 3),
            "action": torch.zeros(5, 1, dtype=torch.int64),
            "mask": torch.ones(5, 1, dtype=torch.bool),
        }
    )
    want = frozenset({"median"})
    torch.testing.assert_close(
        again.evaluate(batch, want).extras["median"], policy.evaluate(batch, want).extras["median"]
    )
    policy.evaluate(batch, want).extras["median"].sum().backward()
    touched = {name.split(".")[0] for name, p in policy.named_parameters() if p.grad is not None}
    assert touched == {"heads"}
    assert not any(p is q for p in policy.actor_parameters() for q in policy.heads.parameters())
    with pytest.raises(UserError, match="no output quantile"):
        policy.evaluate(batch, frozenset({"quantile"}))


def test_settings_out_of_range_are_refused() -> None:
    for settings, message in (
        ({"epochs": 0}, "epochs=0"),
        ({"minibatches": 0}, "minibatches=0"),
        ({"lr": 0.0}, r"lr=0\.0"),
        ({"eps": -0.1}, r"BoundedRatio\.eps=-0\.1 is out of range"),
        ({"softness": 0.0}, r"BoundedRatio\.softness=0\.0 is out of range"),
        ({"value_coefficient": -1.0}, r"Critic\.coefficient=-1\.0"),
        ({"median_coefficient": -1.0}, r"MedianCritic\.median=-1\.0"),
    ):
        with pytest.raises(UserError, match=message):
            vantage.method("brrl", **settings)


def test_it_is_ppo_with_another_critic_and_loss() -> None:
    made = vantage.method("brrl", eps=0.4, median=False, lr=1e-3, micro_batch=8)
    assert made.parent is not None
    assert made.parent.name == "ppo"
    assert made.objective == BoundedRatio(0.4, 0.001, False)
    assert made.values == MedianCritic(0.5, None)
    update = made.update
    assert (update.optimizer.lr, update.micro_batch, update.max_grad_norm, update.normalize_advantage) == (
        1e-3,
        8,
        1.0,
        False,
    )
    assert vantage.method("brrl").wants == {"logp", "value", "median", "entropy"}


def test_it_runs_with_its_head_and_resumes(tmp_path) -> None:
    bpo = vantage.method("brrl", rows=6, length=4, epochs=2, minibatches=2, lr=1e-2)
    run: Any = trainer(bpo, 3)
    run.run()
    assert run.context.policy.heads["median"].abs().max() > 0
    assert_resumes(tmp_path, bpo)


def test_bpo_learns_to_balance_a_pole() -> None:
    pytest.importorskip("gymnasium")
    method = vantage.method("brrl", rows=8, length=64, epochs=4, minibatches=2, lr=3e-3)
    run = vantage.train(method, "cartpole", steps=7_000, seed=1, evaluate_samples=8)
    lines = run.metrics
    key = "eval/return"
    assert lines[-1][key] > lines[0][key] + 100
